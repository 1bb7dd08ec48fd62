"""JSON Lines to a prepared folder: scan, tokenizer, packing, manifest, report."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from common.errors import UserError
from common.files import sha256_file
from corpus.manifest import FORMAT, MANIFEST_NAME, TOKENIZER_NAME, InputInfo, Manifest, SplitInfo
from corpus.ngram_baselines import NGramBaselines, measure
from corpus.output_folder import check_replaceable, replacing
from corpus.packing import TextFigures, pack_chunk
from corpus.reader import Chunk, parse_chunk, read_chunks
from corpus.report import CorpusReport, build_report
from corpus.scan import Scan, scan_chunk
from corpus.settings import PreparationSettings, fingerprint
from corpus.shards import Corpus, SplitWriter, open_stream
from corpus.tokenizer import load_tokenizer, special_ids, train_tokenizer_json, vocab_size
from corpus.workers import WorkerPool

# Text to train a tokenizer on: 32 MB for 6,400 entries, which settles their merges in about a minute; training takes
# time in proportion to the text, and would otherwise cost as much as packing the whole corpus.
SAMPLE_BYTES_PER_ENTRY = 5_000
MAX_SAMPLE_BYTES = 100 * 10**6
# Below this, starting processes takes longer than the work.
IN_PROCESS_BYTES = 2 * 2**20


def prepare(
    inputs: Sequence[Path],
    output: Path,
    settings: PreparationSettings,
    *,
    workers: int | None = None,
    progress: TextIO | None = sys.stderr,
) -> Manifest:
    """Make `output` a prepared corpus of the JSON Lines files `inputs`, or reuse it if it is one already.

    The result depends on the content of the files and on the settings, never on `workers` (default: all cores) or
    chance. Memory stays constant but for 110 bytes a distinct document, with `dedup` "near" up to 1,200 (see `Scan`).
    `progress` None is silent. UserError for bad input; then `output` is as it was.
    """
    _check(inputs, settings, workers)
    check_replaceable(output)
    name = fingerprint(inputs, settings)
    manifest = _reusable(output, name, progress)
    if manifest is not None:
        return manifest
    size = sum(path.stat().st_size for path in (*settings.val_inputs, *inputs))
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with (
            replacing(output) as folder,
            WorkerPool(0 if workers == 1 or size < IN_PROCESS_BYTES else workers) as pool,
        ):
            return _Preparation(inputs, settings, folder, pool, progress).build(name)
    except OSError as error:  # of the output: the reader turns its own into UserErrors
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None


def _check(inputs: Sequence[Path], settings: PreparationSettings, workers: int | None) -> None:
    """Collect every problem with the arguments, then report all of them at once."""
    problems = [] if inputs else ["--input: give at least one JSON Lines file"]
    for path in (*inputs, *settings.val_inputs):
        if not path.is_file():
            problems.append(f"{path}: {'is a folder; give the files in it' if path.is_dir() else 'no such file'}")
    problems += settings.problems()
    if workers is not None and workers < 1:
        problems.append(f"--workers {workers}: must be at least 1")
    if problems:
        raise UserError("\n".join(problems))
    if settings.tokenizer is not None:
        special_ids(load_tokenizer(settings.tokenizer))


def _reusable(output: Path, name: str, progress: TextIO | None) -> Manifest | None:
    """Return the manifest of `output` if it is whole and was made from the same content and settings."""
    if not (output / MANIFEST_NAME).exists():
        return None
    try:
        manifest = Manifest.read(output)
        if manifest.fingerprint != name:
            return None
        Corpus.open(output)
        CorpusReport.read(output)
    except UserError as error:
        _say(progress, f"preparing again: {error}")
        return None
    _say(progress, f"{output}: already prepared from the same content and settings; reused")
    return manifest


def _say(stream: TextIO | None, text: str) -> None:
    if stream is not None and text:
        print(text, file=stream, flush=True)


@dataclass(frozen=True)
class _Preparation:
    """One preparation: what it reads, and the folder, the workers and the stream of messages that it uses."""

    inputs: Sequence[Path]
    settings: PreparationSettings
    folder: Path
    pool: WorkerPool
    progress: TextIO | None

    def build(self, name: str) -> Manifest:
        """Fill the folder; `name` is the fingerprint."""
        settings = self.settings
        scan = self._scan()
        _say(self.progress, scan.bad_line_message())
        source = self._make_tokenizer(scan)
        tokenizer_path = self.folder / TOKENIZER_NAME
        tokenizer_sha256 = sha256_file(tokenizer_path)
        writers, figures = self._pack(scan, tokenizer_path, tokenizer_sha256)
        splits = {split: writer.finish() for split, writer in writers.items()}
        tokenizer = load_tokenizer(tokenizer_path)
        bos_id, eos_id, pad_id = special_ids(tokenizer)
        files = [(path, "val") for path in settings.val_inputs] + [(path, "train") for path in self.inputs]
        manifest = Manifest(
            format=FORMAT,
            fingerprint=name,
            settings=settings.recorded(),
            inputs=[InputInfo(file=path.name, side=side, bytes=path.stat().st_size) for path, side in files],
            vocab_size=vocab_size(tokenizer),
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
            tokenizer_sha256=tokenizer_sha256,
            tokenizer_source=source,
            entropy_nats=round(writers["train"].entropy_nats(), 6),
            ngram_baselines=self._measure_baselines(splits, vocab_size(tokenizer)),
            exact_duplicates=scan.exact_duplicates,
            dropped_in_val=scan.dropped_in_val,
            skipped={reason: count for reason, count in sorted(scan.skipped.items()) if count},
            bad_lines=scan.bad_lines,
            splits=splits,
        )
        manifest.write(self.folder)
        build_report(manifest, figures, scan.duplicates(), scan.repetition.report()).write(self.folder)
        return manifest

    def _chunks(self) -> Iterator[tuple[Chunk, bool]]:
        """Yield all chunks with whether they are of a validation file; those come first."""
        for paths, from_val_file in ((self.settings.val_inputs, True), (self.inputs, False)):
            for path in paths:
                for chunk in read_chunks(path):
                    yield chunk, from_val_file

    def _bar(self, title: str, total_bytes: int) -> tqdm:
        """Return a progress bar over `total_bytes`; a log file gets a line now and then instead of ten a second."""
        stream = self.progress
        pause = 0.2 if stream is not None and stream.isatty() else 15.0
        options = {"mininterval": pause, "maxinterval": pause, "unit": "B", "unit_scale": True}
        return tqdm(desc=title, total=total_bytes, file=stream, disable=stream is None, **options)

    def _scan(self) -> Scan:
        """Run the first pass."""
        s = self.settings
        scan = Scan(
            dedup=s.dedup,
            drop_repetitive=s.repetition == "drop",
            val_fraction=0.0 if s.val_inputs else s.val_fraction,
            sample_bytes=0 if s.tokenizer else min(MAX_SAMPLE_BYTES, SAMPLE_BYTES_PER_ENTRY * s.vocab_size),
        )
        # The ceiling is read when the task is made: by then the sample may have filled up, and less text need travel.
        tasks = ((*pair, scan.settings, scan.sample.ceiling) for pair in self._chunks())
        with self._bar("reading", sum(path.stat().st_size for path in (*s.val_inputs, *self.inputs))) as bar:
            for found in self.pool.map(scan_chunk, tasks):
                scan.add(found)
                bar.set_postfix_str(f"{len(scan.assignment):,} documents", refresh=False)
                bar.update(found.file_bytes)
        if s.dedup == "near":
            _say(self.progress, f"comparing {len(scan.assignment):,} documents for near duplicates")
        scan.finish(s.max_bad_share, self.inputs, s.val_inputs)
        return scan

    def _make_tokenizer(self, scan: Scan) -> str:
        """Write the tokenizer into the folder; return where it comes from, in words."""
        path, given, sample = self.folder / TOKENIZER_NAME, self.settings.tokenizer, scan.sample
        if given is not None:
            shutil.copyfile(given, path)
            return f"given: {given.name}"
        _say(self.progress, f"training the tokenizer on {len(sample):,} documents, {sample.size / 1e6:,.1f} MB")
        # In a worker, so that this process never starts the library's threads and may fork later.
        arguments = (sample.texts(), self.settings.vocab_size, self.pool.workers > 0)
        path.write_text(self.pool.call(train_tokenizer_json, *arguments), encoding="utf-8")
        return (
            f"trained on the {len(sample):,} training documents ({sample.size:,} bytes) with the smallest hashes, "
            f"limit {sample.budget:,} bytes"
        )

    def _pack(self, scan: Scan, tokenizer: Path, tokenizer_sha256: str) -> tuple[dict[str, SplitWriter], TextFigures]:
        """Run the second pass; return the writers, still open at their last shard."""
        writers = {name: SplitWriter(self.folder, name, self.settings.shard_tokens) for name in ("train", "val")}
        figures, documents = TextFigures(), 0
        tasks = ((tokenizer, tokenizer_sha256, chunk, sides) for chunk, sides in self._assigned_chunks(scan))
        with self._bar("packing", sum(scan.chunk_bytes)) as bar:
            for size, (packed, found) in zip(scan.chunk_bytes, self.pool.map(pack_chunk, tasks), strict=True):
                figures.add(found)
                for name, writer in writers.items():
                    writer.add(packed[name])
                    documents += packed[name].documents
                bar.set_postfix_str(f"{documents:,} documents", refresh=False)
                bar.update(size)
        return writers, figures

    def _assigned_chunks(self, scan: Scan) -> Iterator[tuple[Chunk, bytes]]:
        """Yield the chunks again, each with its documents' assignment; find the texts of the examples on the way."""
        start = read = 0
        examples = scan.examples.places()
        for read, (chunk, _) in enumerate(self._chunks(), 1):
            documents = scan.chunk_documents[read - 1] if read <= len(scan.chunk_documents) else 0
            wanted = [place for place in examples if start <= place < start + documents]
            texts = parse_chunk(chunk).texts if wanted else []
            if len(texts) == documents:  # else the worker says that the file has changed
                for place in wanted:
                    scan.examples.add_text(place, texts[place - start])
            yield chunk, bytes(scan.assignment[start : start + documents])
            start += documents
        if read != len(scan.chunk_documents):
            raise UserError("--input: a file changed while it was read; run again when nothing writes to it")

    def _measure_baselines(self, splits: dict[str, SplitInfo], entries: int) -> NGramBaselines | None:
        """Measure the n-gram baselines; None without validation text."""
        val = splits["val"]
        if val.tokens < 2:
            return None
        _say(self.progress, "reading the tokens once more for the n-gram baselines")
        train_ids, val_ids = (open_stream(self.folder, splits[name]) for name in ("train", "val"))
        found = measure(train_ids, val_ids, entries, val.bytes / val.tokens)
        return NGramBaselines(**{name: round(value, 6) for name, value in found})
