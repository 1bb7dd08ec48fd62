"""Parquet and Arrow files (those of Hugging Face `datasets` too), turned into JSON Lines as they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import open_regular
from corpus.formats.compression import Block

PARQUET_MAGIC, ARROW_FILE_MAGIC, ARROW_STREAM_MAGIC = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
REQUIREMENTS = "requirements-formats.txt"
_ROWS_AT_ONCE = 256
_BUFFER_BYTES = 2**20


def is_arrow(magic: bytes) -> bool:
    """Return whether a file that begins so is one of these."""
    return magic.startswith((PARQUET_MAGIC, ARROW_FILE_MAGIC, ARROW_STREAM_MAGIC))


def arrow_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Block]:
    """Yield the rows of a file as JSON Lines, with all columns that JSON can hold or only `columns`.

    Memory holds a few hundred rows and the pages that they are unpacked from. UserError if pyarrow is missing.
    """
    with _reading(path):
        batches, rows = _batches(path, columns)
        size, done, before = path.stat().st_size, 0, 0
        for whole in batches:
            for start in range(0, whole.num_rows, _ROWS_AT_ONCE):
                batch = whole.slice(start, _ROWS_AT_ONCE)
                done += batch.num_rows
                upto = size * done // rows if rows else before
                yield _as_lines(batch, columns), upto - before
                before = upto
        yield b"", size - before


def _batches(path: Path, columns: Sequence[str] | None) -> tuple[Iterator[Any], int | None]:
    """Return the record batches of a file, and the number of rows where the file says it beforehand."""
    import pyarrow
    from pyarrow import ipc, parquet

    with open_regular(path) as file:
        magic = file.read(len(ARROW_FILE_MAGIC))
    if magic.startswith(PARQUET_MAGIC):
        # Without threads: the cores belong to the workers, and the training process may want to fork.
        source = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        chosen = None if columns is None else [name for name in columns if name in source.schema_arrow.names]
        batches = source.iter_batches(_ROWS_AT_ONCE, columns=chosen, use_threads=False)
        return batches, source.metadata.num_rows
    options = ipc.IpcReadOptions(use_threads=False)
    stream = pyarrow.OSFile(str(path))
    if magic.startswith(ARROW_FILE_MAGIC):
        reader = ipc.open_file(stream, options=options)
        return (reader.get_batch(number) for number in range(reader.num_record_batches)), None
    return iter(ipc.open_stream(stream, options=options)), None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into sentences."""
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            f"{path}: Parquet and Arrow files are read with pyarrow, which is not installed; "
            f"pip install -r {REQUIREMENTS}"
        ) from None
    try:
        yield
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: damaged Parquet or Arrow file ({error}); copy or download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _as_lines(batch: Any, columns: Sequence[str] | None) -> bytes:
    names = [name for name in batch.schema.names if columns is None or name in columns]
    values = [_python_values(batch.column(name)) for name in names]
    lines = (
        json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=str)
        for row in zip(*values, strict=True)
    )
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _python_values(column: Any) -> list[Any]:
    """Return the values of a column; bytes that are no UTF-8 become lone surrogates, for the parser to find."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast("binary").to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
