"""The folder that a preparation fills beside its output, with what it has done recorded, so that it can continue.

`.NAME.partial-FINGERPRINT.VERSION` holds the workers' results of both passes, a record for each chunk of text (512
KB), in files named scan-K-of-N and pack-K-of-N; N is 1 without `--part`. Who finds records of the same text and
settings takes them in place of the work. At the end the folder, without records, takes the place of the output.
"""

from __future__ import annotations

import dataclasses
import fcntl
import glob
import heapq
import io
import os
import pickle
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import printable, size_of, sync
from corpus.manifest import MANIFEST_NAME
from corpus.scan import Key
from corpus.workers import WorkerLost

_OWN_FILE = re.compile(r"(train|val)-\d{5,}\.(bin|mask)|(tokenizer|manifest|report|training_text)\.json")
_VERSION = 3  # raised when what is recorded changes, so that nobody continues from what another version recorded
_HEADER = struct.Struct("<QI")  # of a record: its bytes, their CRC-32
_END = _HEADER.pack(0, 0)
_NUMPY_NAMES = ("_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar")


@dataclass(frozen=True)
class Part:
    """Part `number`, from 1, of the `count` that a preparation is divided into."""

    number: int = 1
    count: int = 1

    def takes_file(self, file: int, files: int) -> bool:
        """Return whether the part reads a file: its own, or any if there are fewer files than parts."""
        return files < self.count or file % self.count == self.number - 1

    def takes_chunk(self, chunk: int, files: int) -> bool:
        """Return whether a chunk of such a file, by its number there, is the part's own."""
        return files >= self.count or chunk % self.count == self.number - 1


class Records:
    """The results of one pass over the chunks of a part, in their order; what a crash has cut off is not read."""

    def __init__(self, path: Path) -> None:
        self.path, self._unfinished = path, path.with_name(f"{path.name}.unfinished")
        self._end = 0  # of the last whole record that was read or written

    @property
    def complete(self) -> bool:
        """Whether the pass has come to its end."""
        return self.path.exists()

    @property
    def begun(self) -> bool:
        """Whether there are any."""
        return self.complete or self._unfinished.exists()

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        self._end = 0
        path = self.path if self.complete else self._unfinished
        if not path.exists():
            return
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            while len(header := file.read(_HEADER.size)) == _HEADER.size:
                length, checksum = _HEADER.unpack(header)
                if header == _END:
                    return
                data = file.read(length) if length <= left else b""
                if not data or zlib.crc32(data) != checksum:
                    break
                self._end = file.tell()
                try:
                    record = _Unpickler(io.BytesIO(data)).load()
                except Exception as error:  # of pickle, and whatever a damaged pickle makes of our classes
                    raise UserError(f"{path}: holds no records ({printable(error)}); remove its folder") from None
                yield record
        if self.complete:
            raise UserError(f"{path}: is cut off; copy it again, or remove its folder")

    def append(self, key: Key, result: Any) -> None:
        """Add a result behind the last one that was read or added."""
        data = pickle.dumps((key, result), protocol=pickle.HIGHEST_PROTOCOL)
        self._write(_HEADER.pack(len(data), zlib.crc32(data)) + data)

    def finish(self) -> None:
        """Say that there are no more."""
        self._write(_END)
        sync(self._unfinished)
        self._unfinished.rename(self.path)

    def _write(self, data: bytes) -> None:
        with self._unfinished.open("ab") as file:
            file.truncate(self._end)
            file.write(data)
            self._end = file.tell()


class _Unpickler(pickle.Unpickler):
    """Reads our records and nothing else: a pickle of another origin could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a dataclass of this package, or what arrays and counters are made of."""
        package, _, _ = module.partition(".")
        found = getattr(sys.modules.get(module), name, None)
        if package == "corpus" and dataclasses.is_dataclass(found):
            return found
        if (module, name) == ("collections", "Counter") or (package == "numpy" and name in _NUMPY_NAMES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is none of ours")


class PartialFolder:
    """The folder of one preparation; without `part` the whole is prepared, or the parts that are there are joined."""

    def __init__(self, output: Path, fingerprint: str, part: Part | None = None) -> None:
        self.output = output.resolve()
        self.path = self.output.with_name(f".{self.output.name}.partial-{fingerprint[:12]}.{_VERSION}")
        counts = {int(path.name.split(".")[0].rpartition("-")[2]) for path in self.path.glob("scan-*-of-*")}
        self.part = part or Part(1, max(counts, default=1))
        if counts - {self.part.count}:
            raise UserError(
                f"{self.path}: holds a preparation in {' and in '.join(map(str, sorted(counts)))} parts (1 is one "
                "without --part); continue that, or remove the folder to begin anew"
            )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep other processes from the part while it is worked on, and word what goes wrong.

        Text that is refused leaves nothing of a preparation in one part; after anything else, such as a file that
        cannot be read to its end, the folder stays, to be continued.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / f"lock-{self.part.number}-of-{self.part.count}").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(f"{self.output}: another process is preparing it; wait until it is done") from None
                try:
                    yield
                except UserError as error:
                    scan = self.records("scan")
                    refused = (scan.complete or not scan.begun) and not self.records("pack").begun
                    if refused and self.part.count == 1 and not isinstance(error, WorkerLost):
                        shutil.rmtree(self.path, ignore_errors=True)
                    raise
        except OSError as error:  # of the output: the reader turns its own into UserErrors
            raise UserError(
                f"{self.output}: cannot be written ({error.strerror or error}); the same command continues what is "
                f"done in {self.path}"
            ) from None

    def remarks(self) -> list[str]:
        """Return what a user should know of this folder and of those that other preparations left."""
        beside = self.path.parent.glob(glob.escape(self.path.name.rpartition("-")[0]) + "-*")
        found = [
            f"{path}: left by a preparation of other text or settings, not continued; remove it to free "
            f"{size_of(path) / 1e6:,.0f} MB"
            for path in sorted({*beside} - {self.path})
        ]
        if self.records("scan").begun:
            found.append(f"{self.path}: continuing what was done before")
        return found

    def records(self, stage: str, number: int | None = None) -> Records:
        """Return the records of a part, or of this one."""
        return Records(self.path / f"{stage}-{number or self.part.number}-of-{self.part.count}")

    def all_records(self, stage: str) -> Iterator[tuple[Key, Any]]:
        """Yield the records of all parts in the order of the chunks."""
        parts = (self.records(stage, number) for number in range(1, self.part.count + 1))
        return heapq.merge(*parts, key=lambda record: record[0])

    def missing(self, stage: str) -> list[int]:
        """Return the parts that have not come to the end of a pass."""
        return [n for n in range(1, self.part.count + 1) if not self.records(stage, n).complete]

    def take_place(self) -> None:
        """Put the folder, without records, in the place of the output."""
        for path in self.path.iterdir():
            if not _OWN_FILE.fullmatch(path.name):
                path.unlink()
        if not self.output.exists():
            self.path.rename(self.output)
            return
        old = self.output.with_name(f".{self.output.name}.old-{os.getpid()}")
        self.output.rename(old)
        try:
            self.path.rename(self.output)
        except BaseException:
            old.rename(self.output)
            raise
        shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Raise UserError unless `folder` is absent, empty, or holds a prepared corpus and nothing else."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UserError(f"{folder}: is a file; give --output a folder") from None
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in it
        raise UserError(f"{folder}: cannot be the output ({error}); give --output another folder") from None
    # A folder by the name of one of our files holds somebody's own, and would be deleted with all that is in it.
    foreign = [e.name for e in entries if not _OWN_FILE.fullmatch(e.name) or e.is_dir(follow_symlinks=False)]
    names = [e.name for e in entries]
    if foreign or (names and MANIFEST_NAME not in names):
        first = (foreign or names)[0]
        raise UserError(f"{folder}: holds other files ({first}); give --output a new or an empty folder")
