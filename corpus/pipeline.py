"""Text to a prepared folder: scan, tokenizer, packing, manifest, report."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from common.errors import UserError
from common.files import sha256_file
from common.training_text import TrainingText
from corpus.conversations.figures import AnswerFigures
from corpus.formats.detect import TextFile
from corpus.manifest import (
    BYTES_PER_TOKEN,
    FORMAT,
    MANIFEST_NAME,
    TOKENIZER_NAME,
    InputInfo,
    Manifest,
    SourceInfo,
    SplitInfo,
)
from corpus.ngram_baselines import NGramBaselines, measure
from corpus.output_folder import check_replaceable, replacing
from corpus.packing import TextFigures, pack_chunk
from corpus.reader import Chunk, parse_chunk, read_chunks, remarks, text_files
from corpus.report import CorpusReport, build_report
from corpus.scan import Scan, scan_chunk
from corpus.settings import PreparationSettings, fingerprint_of
from corpus.shards import Corpus, MaskedStream, SplitWriter, open_stream
from corpus.tokenizer import entry_ids, load_tokenizer, special_ids, train_tokenizer_json, vocab_size
from corpus.workers import WorkerPool

# Text to train a tokenizer on: 32 MB for 6,400 entries, which settles their merges in about a minute; training takes
# time in proportion to the text, and would otherwise cost as much as packing the whole corpus.
SAMPLE_BYTES_PER_ENTRY = 5_000
MAX_SAMPLE_BYTES = 100 * 10**6
# Below this, starting processes takes longer than the work.
IN_PROCESS_BYTES = 2 * 2**20
MOST_FILES_LISTED = 1000
SOURCE_FIGURES = ("documents", "bytes", "tokens")


def prepare(
    inputs: Sequence[Path],
    output: Path,
    settings: PreparationSettings,
    *,
    workers: int | None = None,
    progress: TextIO | None = sys.stderr,
) -> Manifest:
    """Make `output` a prepared corpus of the text in `inputs` (files, folders, patterns), or reuse it if it is one.

    The result depends on the content of the files and on the settings, never on `workers` (default: all cores) or
    chance. Memory stays constant but for 110 bytes a distinct document, with `dedup` "near" up to 1,200 (see `Scan`).
    `progress` None is silent. UserError for bad input; then `output` is as it was.
    """
    files, val_files = _check(inputs, settings, workers)
    check_replaceable(output)
    name = fingerprint_of(files, val_files, settings)
    manifest = _reusable(output, name, progress)
    if manifest is not None:
        return manifest
    for remark in remarks([*val_files, *files]):
        _say(progress, remark)
    size = _size([*val_files, *files])
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with (
            replacing(output) as folder,
            WorkerPool(0 if workers == 1 or size < IN_PROCESS_BYTES else workers) as pool,
        ):
            return _Preparation(files, val_files, settings, folder, pool, progress).build(name)
    except OSError as error:  # of the output: the reader turns its own into UserErrors
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None


def _check(
    inputs: Sequence[Path], settings: PreparationSettings, workers: int | None
) -> tuple[list[TextFile], list[TextFile]]:
    """Return the files of `inputs` and of validation; report every problem with the arguments at once."""
    problems = settings.problems() + ([] if inputs else ["--input: give at least one file, folder or pattern"])
    sides: list[list[TextFile]] = []
    for paths in (inputs, settings.val_inputs):
        try:
            sides.append(text_files(paths, settings.format))
        except UserError as error:
            problems.append(str(error))
    if workers is not None and workers < 1:
        problems.append(f"--workers {workers}: must be at least 1")
    if problems:
        raise UserError("\n".join(problems))
    if settings.tokenizer is not None:
        special_ids(load_tokenizer(settings.tokenizer))
    return sides[0], sides[1]


def _reusable(output: Path, name: str, progress: TextIO | None) -> Manifest | None:
    """Return the manifest of `output` if it is whole and was made from the same content and settings."""
    if not (output / MANIFEST_NAME).exists():
        return None
    try:
        manifest = Manifest.read(output)
        if manifest.fingerprint != name:
            return None
        Corpus.open(output)
        repetition = CorpusReport.read(output).repetition
    except UserError as error:
        _say(progress, f"preparing again: {error}")
        return None
    _say(progress, f"{output}: already prepared from the same content and settings; reused")
    runs = repetition.by_rule.get("runs", 0) if repetition and repetition.dropped else 0
    if repetition and runs and "run_share" not in repetition.thresholds:
        _say(
            progress,
            "it was prepared when a long run of one letter left out a whole document, as it may have "
            f"{runs:,}; remove the folder to prepare it by the present rule",
        )
    return manifest


def _size(files: Sequence[TextFile]) -> int:
    """Return the bytes of all files on the disk."""
    return sum(path.stat().st_size for path in {file.path for file in files})


def _inputs(files: Sequence[TextFile], side: str) -> list[InputInfo]:
    """Return what the manifest says of the files of one side: of many, their folders only."""
    paths = list(dict.fromkeys(file.path for file in files))
    if len(paths) <= MOST_FILES_LISTED:
        return [InputInfo(file=path.name, side=side, bytes=path.stat().st_size) for path in paths]
    folders: dict[Path, list[int]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path.stat().st_size)
    return [
        InputInfo(file=f"{folder.name}/ ({len(sizes):,} files)", side=side, bytes=sum(sizes))
        for folder, sizes in folders.items()
    ]


def _say(stream: TextIO | None, text: str) -> None:
    if stream is not None and text:
        print(text, file=stream, flush=True)


@dataclass(frozen=True)
class _Preparation:
    """One preparation: what it reads, and the folder, the workers and the stream of messages that it uses."""

    files: Sequence[TextFile]
    val_files: Sequence[TextFile]
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
        writers, figures, sources = self._pack(scan, tokenizer_path, tokenizer_sha256)
        splits = {split: writer.finish() for split, writer in writers.items()}
        tokenizer = load_tokenizer(tokenizer_path)
        bos_id, eos_id, pad_id = special = special_ids(tokenizer)
        unused = [i for i in entry_ids(tokenizer) if not writers["train"].frequencies[i] and i not in special]
        TrainingText(characters="".join(sorted(figures.characters)), unused_tokens=unused).write(self.folder)
        manifest = Manifest(
            format=FORMAT,
            fingerprint=name,
            settings=settings.recorded(),
            inputs=_inputs(self.val_files, "val") + _inputs(self.files, "train"),
            vocab_size=vocab_size(tokenizer),
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
            tokenizer_sha256=tokenizer_sha256,
            tokenizer_source=source,
            entropy_nats=round(writers["train"].entropy_nats(), 6),
            ngram_baselines=self._measure_baselines(splits, (bos_id, eos_id, pad_id), vocab_size(tokenizer)),
            exact_duplicates=scan.exact_duplicates,
            dropped_in_val=scan.dropped_in_val,
            skipped={reason: count for reason, count in sorted(scan.skipped.items()) if count},
            bad_lines=scan.bad_lines,
            splits=splits,
            sources=sources or None,
        )
        manifest.write(self.folder)
        answers = AnswerFigures()
        for writer in writers.values():
            answers.add(writer.answers)
        cleaning = scan.duplicates(), scan.repetition.report()
        report = build_report(manifest, figures, *cleaning, len(unused), answers)
        report.write(self.folder)
        return manifest

    def _chunks(self) -> Iterator[tuple[Chunk, bool]]:
        """Yield all chunks with whether they are of a validation file; those come first."""
        for files, from_val_file in ((self.val_files, True), (self.files, False)):
            for file in files:
                for chunk in read_chunks(file):
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
        with self._bar("reading", _size([*self.val_files, *self.files])) as bar:
            for found in self.pool.map(scan_chunk, tasks):
                scan.add(found)
                bar.set_postfix_str(f"{len(scan.assignment):,} documents", refresh=False)
                bar.update(found.file_bytes)
        if s.dedup == "near":
            _say(self.progress, f"comparing {len(scan.assignment):,} documents for near duplicates")
        scan.finish(s.max_bad_share, *([file.path for file in side] for side in (self.files, self.val_files)))
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

    def _pack(
        self, scan: Scan, tokenizer: Path, tokenizer_sha256: str
    ) -> tuple[dict[str, SplitWriter], TextFigures, list[SourceInfo]]:
        """Run the second pass; return the writers, still open at their last shard, and what each source gave."""
        masked = scan.conversations > 0
        writers = {
            name: SplitWriter(self.folder, name, self.settings.shard_tokens, masked) for name in ("train", "val")
        }
        figures, documents = TextFigures(), 0
        sources: list[Counter[str]] = [Counter() for _ in self.settings.weights]
        tasks = ((tokenizer, tokenizer_sha256, *pair, masked) for pair in self._assigned_chunks(scan))
        with self._bar("packing", sum(scan.chunk_bytes)) as bar:
            results = zip(scan.chunk_bytes, scan.chunk_sources, self.pool.map(pack_chunk, tasks), strict=True)
            for size, source, (packed, found) in results:
                figures.add(found)
                if sources and source >= 0:
                    train = packed["train"]
                    sources[source].update(documents=train.documents, bytes=train.bytes)
                    sources[source].update(tokens=len(train.ids) // BYTES_PER_TOKEN)
                for name, writer in writers.items():
                    writer.add(packed[name])
                    documents += packed[name].documents
                bar.set_postfix_str(f"{documents:,} documents", refresh=False)
                bar.update(size)
        return writers, figures, self._sources(sources)

    def _sources(self, counts: Sequence[Counter[str]]) -> list[SourceInfo]:
        """Return what the manifest says of the sources of a mixture, given what train has of each."""
        found = []
        for source, (weight, count) in enumerate(zip(self.settings.weights, counts, strict=True)):
            paths = [file.path for file in self.files if file.source == source]
            name = paths[0].name if len(paths) == 1 else f"{paths[0].parent.name}/"
            found.append(SourceInfo(name=name, weight=weight, **{key: count[key] for key in SOURCE_FIGURES}))
        return found

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

    def _measure_baselines(
        self, splits: dict[str, SplitInfo], special: tuple[int, int, int], entries: int
    ) -> NGramBaselines | None:
        """Measure the n-gram baselines, on the targets that count; None without validation text."""
        val = splits["val"]
        if val.tokens < 2 or (val.answers and not val.answers.targets):
            return None
        _say(self.progress, "reading the tokens once more for the n-gram baselines")
        train_ids, val_ids = (open_stream(self.folder, splits[name], special) for name in ("train", "val"))
        mask = val_ids.mask if isinstance(val_ids, MaskedStream) else None
        found = measure(train_ids, val_ids, entries, val.bytes_per_target, mask=mask)
        return NGramBaselines(**{name: round(value, 6) for name, value in found})
