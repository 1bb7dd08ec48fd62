"""Text to a prepared folder: scan, tokenizer, packing, manifest, report."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from common.errors import UserError
from common.files import sha256_file
from common.hardware import usable_cores
from common.training_text import TrainingText
from corpus.formats.detect import TextFile
from corpus.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Manifest,
    SplitInfo,
    input_infos,
    source_infos,
)
from corpus.ngram_baselines import NGramBaselines, measure
from corpus.packing import PackedChunk, TextFigures, pack_chunk
from corpus.partial_folder import Part, PartialFolder, check_replaceable
from corpus.reader import Chunk, read_chunks, remarks, small_files_joined
from corpus.report import CorpusReport, build_report
from corpus.scan import ChunkDocuments, Key, Scan, scan_chunk
from corpus.settings import FORMAT, PreparationSettings
from corpus.shards import Corpus, MaskedStream, SplitWriter, open_stream
from corpus.split import IN_VAL
from corpus.tokenizer import entry_ids, load_tokenizer, special_ids, train_tokenizer_json, vocab_size
from corpus.workers import WorkerPool

# Below this, starting processes takes longer than the work.
IN_PROCESS_BYTES = 2 * 2**20
CHANGED = "--input: a file changed while it was read; run again when nothing writes to it"


def prepare(
    inputs: Sequence[Path],
    output: Path,
    settings: PreparationSettings,
    *,
    workers: int | None = None,
    progress: TextIO | None = sys.stderr,
    fingerprint: str | None = None,
) -> Manifest:
    """Make `output` a prepared corpus of the text in `inputs` (files, folders, patterns), or reuse it if it is one.

    The result depends on the content of the files and on the settings, never on `workers` (default: all cores) or
    chance. What a process that was killed has done is not done again, and parts that were prepared are joined. Memory
    stays constant but for 130 bytes a distinct document, with `dedup` "near" up to 1,200 (see `Scan`). `progress` None
    is silent. All text is read for its `fingerprint` unless that is given. UserError for bad input; then `output` is as
    it was.
    """
    with _begin(inputs, output, settings, workers, progress, fingerprint=fingerprint) as begun:
        return begun if isinstance(begun, Manifest) else begun.build()


def prepare_part(
    inputs: Sequence[Path],
    output: Path,
    settings: PreparationSettings,
    part: Part,
    *,
    workers: int | None = None,
    progress: TextIO | None = sys.stderr,
) -> str:
    """Do the share of one part in the pass that is due; return in a sentence what is done and what comes next.

    All parts read; then all pack, since each must know what the others have; then `prepare` joins them.
    """
    with _begin(inputs, output, settings, workers, progress, part) as begun:
        return f"{output}: nothing is left to do" if isinstance(begun, Manifest) else begun.do_part()


@contextmanager
def _begin(
    inputs: Sequence[Path],
    output: Path,
    settings: PreparationSettings,
    workers: int | None,
    progress: TextIO | None,
    part: Part | None = None,
    fingerprint: str | None = None,
) -> Iterator[Manifest | _Preparation]:
    """Yield what can be prepared now, or the manifest of `output` if that is done."""
    files = _check(inputs, settings, workers)
    check_replaceable(output)
    fingerprint = fingerprint or settings.fingerprint(files)
    if manifest := _reusable(output, fingerprint, progress):
        yield manifest
        return
    partial = PartialFolder(output, fingerprint, part)
    for remark in (*remarks(files), *partial.remarks()):
        _say(progress, remark)
    if workers is None:
        workers = usable_cores()
    in_process = workers == 1 or _size(files) < IN_PROCESS_BYTES
    with partial.open(), WorkerPool(0 if in_process else workers) as pool:
        yield _Preparation(files, settings, fingerprint, partial, pool, progress)


def _check(inputs: Sequence[Path], settings: PreparationSettings, workers: int | None) -> list[TextFile]:
    """Return the files to read; report every problem with the arguments at once."""
    problems = settings.problems() + ([] if inputs else ["--input: give at least one file, folder or pattern"])
    if workers is not None and workers < 1:
        problems.append(f"--workers {workers}: must be at least 1")
    files = []
    try:
        files = settings.files(inputs)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    if settings.tokenizer is not None:
        special_ids(load_tokenizer(settings.tokenizer))
    return files


def _reusable(output: Path, fingerprint: str, progress: TextIO | None) -> Manifest | None:
    """Return the manifest of `output` if it is whole and was made from the same content and settings."""
    if not (output / MANIFEST_NAME).exists():
        return None
    try:
        if Manifest.read(output).fingerprint != fingerprint:
            return None
        manifest = Corpus.open(output).manifest
        CorpusReport.read(output)
    except UserError as error:
        _say(progress, f"preparing again: {error}")
        return None
    _say(progress, f"{output}: already prepared from the same content and settings; reused")
    return manifest


def _size(files: Sequence[TextFile]) -> int:
    """Return the bytes of all files on the disk."""
    return sum(path.stat().st_size for path in {file.path for file in files})


def _listed(parts: Sequence[int]) -> str:
    return f"part{'s' if len(parts) > 1 else ''} {', '.join(map(str, parts))}"


def _say(stream: TextIO | None, text: str) -> None:
    if stream is not None and text:
        print(text, file=stream, flush=True)


@dataclass(frozen=True)
class _Preparation:
    """One preparation: what it reads, and the folder, the workers and the stream of messages that it uses."""

    files: Sequence[TextFile]
    settings: PreparationSettings
    fingerprint: str
    partial: PartialFolder
    pool: WorkerPool
    progress: TextIO | None

    @cached_property
    def units(self) -> list[TextFile]:
        """What is read in one piece: a file, or neighbouring ones that are small."""
        return small_files_joined(self.files)

    @property
    def folder(self) -> Path:
        """The folder to fill."""
        return self.partial.path

    def do_part(self) -> str:
        """Do what this part can do now; return what is to be done next."""
        part = f"part {self.partial.part.number} of {self.partial.part.count}"
        if not self.partial.records("scan").complete:
            self._scan()
        if waiting := self.partial.missing("scan"):
            return f"{part} is read ({_listed(waiting)} to go); once all are, the same command packs it"
        scan = self._finished_scan()
        self._make_tokenizer(scan)
        if not self.partial.records("pack").complete:
            for _ in self._packed(scan):
                pass
        waiting = self.partial.missing("pack")
        to_go = f"{_listed(waiting)} to go" if waiting else "none to go"
        return f"{part} is packed ({to_go}); once all are, the command without --part joins them"

    def build(self) -> Manifest:
        """Fill the folder and let it take its place."""
        for stage, what in (("scan", "read"), ("pack", "packed")):
            if self.partial.part.count > 1 and (waiting := self.partial.missing(stage)):
                raise UserError(
                    f"{self.folder}: holds {self.partial.part.count} parts, and {_listed(waiting)} must be {what} "
                    "first; do that with --part, or remove the folder to prepare all at once"
                )
        scan = self._finished_scan()
        _say(self.progress, scan.bad_line_message())
        source = self._make_tokenizer(scan)
        writers, figures = self._write(scan)
        splits = {split: writer.finish() for split, writer in writers.items()}
        tokenizer = load_tokenizer(self.folder / TOKENIZER_NAME)
        entries, (bos_id, eos_id, pad_id) = vocab_size(tokenizer), (special := special_ids(tokenizer))
        train = writers["train"]
        unused = [i for i in entry_ids(tokenizer) if not train.frequencies[i] and i not in special]
        TrainingText(characters="".join(sorted(figures.characters)), unused_tokens=unused).write(self.folder)
        manifest = Manifest(
            format=FORMAT,
            fingerprint=self.fingerprint,
            settings=self.settings.recorded(),
            inputs=[info for side in ("val", "train") for info in input_infos(self.files, side)],
            vocab_size=entries,
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
            tokenizer_sha256=sha256_file(self.folder / TOKENIZER_NAME),
            tokenizer_source=source,
            entropy_nats=round(train.entropy_nats(), 6),
            ngram_baselines=self._measure_baselines(splits, special, entries),
            exact_duplicates=scan.exact_duplicates,
            dropped_in_val=scan.count(IN_VAL),
            skipped={reason: count for reason, count in sorted(scan.skipped.items()) if count},
            bad_lines=scan.bad_lines,
            splits=splits,
            sources=source_infos(self.files, self.settings.weights, train.by_source) or None,
        )
        manifest.write(self.folder)
        answers = [writer.answers for writer in writers.values()]
        build_report(manifest, figures, scan, len(unused), answers).write(self.folder)
        self.partial.take_place()
        return manifest

    def _results(
        self, stage: str, function: Callable[..., Any], tasks: Iterator[tuple[Key, tuple[Any, ...]]]
    ) -> Iterator[tuple[Key, Any]]:
        """Yield what a function of the workers makes of the chunks: of all parts once they are done, else of this part.

        What is recorded is not done again, and what is done is recorded.
        """
        if not self.partial.missing(stage):
            yield from self.partial.all_records(stage)
            return
        records = self.partial.records(stage)
        last = (-1, -1)
        for last, result in records:
            yield last, result
        keys: deque[Key] = deque()

        def left() -> Iterator[tuple[Any, ...]]:
            for key, task in tasks:
                if key > last:
                    keys.append(key)
                    yield task

        for result in self.pool.map(function, left()):
            records.append(keys[0], result)
            yield keys.popleft(), result
        records.finish()

    def _chunks(self) -> Iterator[tuple[Key, Chunk]]:
        """Yield the chunks of this part."""
        part, count = self.partial.part, len(self.units)
        for number, file in enumerate(self.units):
            if part.takes_file(number, count):
                for place, chunk in enumerate(read_chunks(file)):
                    if part.takes_chunk(place, count):
                        yield (number, place), chunk

    def _bar(self, title: str, total_bytes: int) -> tqdm:
        """Return a progress bar over `total_bytes`; a log file gets a line now and then instead of ten a second."""
        stream = self.progress
        pause = 0.2 if stream is not None and stream.isatty() else 15.0
        options = {"mininterval": pause, "maxinterval": pause, "unit": "B", "unit_scale": True}
        return tqdm(desc=title, total=total_bytes, file=stream, disable=stream is None, **options)

    def _scan(self) -> Scan:
        """Run the first pass."""
        scan = Scan(self.settings)
        # The ceiling is read when the task is made: by then the sample may have filled up, and less text need travel.
        tasks = ((key, (chunk, self.settings, scan.sample.ceiling)) for key, chunk in self._chunks())
        with self._bar("reading", _size(self.files)) as bar:
            for key, found in self._results("scan", scan_chunk, tasks):
                scan.add(key, found, self.units[key[0]])
                bar.set_postfix_str(f"{len(scan.assignment):,} documents", refresh=False)
                bar.update(found.file_bytes)
        return scan

    def _finished_scan(self) -> Scan:
        """Run the first pass and decide where every document goes."""
        scan = self._scan()
        if self.settings.dedup == "near":
            _say(self.progress, f"comparing {len(scan.assignment):,} documents for near duplicates")
        scan.finish(self.files)
        return scan

    def _make_tokenizer(self, scan: Scan) -> str:
        """Write the tokenizer into the folder unless it is there; return where it comes from, in words."""
        path, given, sample = self.folder / TOKENIZER_NAME, self.settings.tokenizer, scan.sample
        new = path.with_name(f"{TOKENIZER_NAME}-{self.partial.part.number}.new")
        if given is not None:
            new.write_bytes(given.read_bytes())
            new.replace(path)
            return f"given: {given.name}"
        if not path.exists():
            _say(self.progress, f"training the tokenizer on {len(sample):,} documents, {sample.size / 1e6:,.1f} MB")
            # In a worker, so that this process never starts the library's threads and may fork later.
            arguments = (sample.texts(), self.settings.vocab_size, self.pool.workers > 0)
            new.write_text(self.pool.call(train_tokenizer_json, *arguments), encoding="utf-8")
            new.replace(path)
        return (
            f"trained on the {len(sample):,} training documents ({sample.size:,} bytes) with the smallest hashes, "
            f"limit {sample.budget:,} bytes"
        )

    def _pack_tasks(self, scan: Scan) -> Iterator[tuple[Key, tuple[Any, ...]]]:
        """Yield the chunks again, each with its documents' assignment and those that are examples of duplicates."""
        tokenizer = self.folder / TOKENIZER_NAME
        digest, masked = sha256_file(tokenizer), scan.conversations > 0
        wanted = {place for kept, dropped, _ in scan.examples for place in (kept, dropped)}
        for key, chunk in self._chunks():
            if key not in scan.chunks:
                raise UserError(CHANGED)
            places = scan.chunks[key].places
            examples = {place: place - places.start for place in wanted if place in places}
            yield key, (tokenizer, digest, chunk, scan.assignment[places.start : places.stop], masked, examples)

    def _packed(self, scan: Scan) -> Iterator[tuple[ChunkDocuments, PackedChunk]]:
        """Run the second pass."""
        documents = 0
        with self._bar("packing", sum(chunk.text_bytes for chunk in scan.chunks.values())) as bar:
            for key, packed in self._results("pack", pack_chunk, self._pack_tasks(scan)):
                yield scan.chunks[key], packed
                documents += sum(split.documents for split in packed.splits.values())
                bar.set_postfix_str(f"{documents:,} documents", refresh=False)
                bar.update(scan.chunks[key].text_bytes)

    def _write(self, scan: Scan) -> tuple[dict[str, SplitWriter], TextFigures]:
        """Write the shards; return the writers, still open at their last shard, and what is counted of texts."""
        masked, size = scan.conversations > 0, self.settings.shard_tokens
        writers = {name: SplitWriter(self.folder, name, size, masked) for name in ("train", "val")}
        figures, chunks = TextFigures(), 0
        for chunk, packed in self._packed(scan):
            chunks += 1
            figures.add(packed.figures)
            for name, writer in writers.items():
                writer.add(packed.splits[name], chunk.source)
        if chunks != len(scan.chunks):
            raise UserError(CHANGED)
        return writers, figures

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
