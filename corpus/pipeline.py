"""JSON Lines to a prepared folder: survey, tokenizer, packing, manifest."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from common.errors import UserError
from corpus import ngram_baselines, report
from corpus.cleaning.repetition import Repetition
from corpus.fingerprint import (
    DEDUP_CHOICES,
    DEFAULT_MAX_BAD_SHARE,
    DEFAULT_SHARD_TOKENS,
    DEFAULT_VAL_FRACTION,
    DEFAULT_VOCAB_SIZE,
    REPETITION_CHOICES,
    fingerprint,
    normalise,
    sha256_file,
)
from corpus.manifest import FORMAT, MANIFEST_NAME, TOKENIZER_NAME, Manifest, SplitInfo
from corpus.output_folder import check_replaceable, replacing
from corpus.packing import SplitWriter, TokenizerFile, entropy_nats, pack_chunk, text_figures
from corpus.progress import Progress
from corpus.reader import Chunk, parse_chunk, read_chunks
from corpus.scan import Survey, survey_chunk
from corpus.shards import Corpus, open_stream
from corpus.split import HashSubset
from corpus.tokenizer import MAX_ENTRIES, MIN_ENTRIES, load_tokenizer, special_ids, train_tokenizer, vocab_size
from corpus.workers import PARALLELISM, WorkerPool

# Text to train a tokenizer on: 32 MB for 6,400 entries, which settles their merges in about a minute; training takes
# time in proportion to the text, and would otherwise cost as much as packing the whole corpus.
SAMPLE_BYTES_PER_ENTRY = 5_000
MAX_SAMPLE_BYTES = 100 * 10**6
# Below this, starting processes takes longer than the work.
IN_PROCESS_BYTES = 2 * 2**20

__all__ = ["fingerprint", "prepare"]


@dataclass(frozen=True)
class Job:
    """What one preparation works with."""

    inputs: list[Path]
    settings: dict[str, Any]
    progress: Progress

    @property
    def val_inputs(self) -> list[Path]:
        """The validation files; often none."""
        return self.settings["val_inputs"]

    def chunks(self) -> Iterator[tuple[Chunk, bool]]:
        """All chunks with whether they are of a validation file; those come first."""
        for paths, from_val_file in ((self.val_inputs, True), (self.inputs, False)):
            for path in paths:
                for chunk in read_chunks(path):
                    yield chunk, from_val_file

    def file_bytes(self) -> int:
        """The size of all files on the disk."""
        return sum(path.stat().st_size for path in (*self.val_inputs, *self.inputs))


def prepare(
    inputs: list[Path],
    output: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    dedup: str = "exact",
    repetition: str = "drop",
    val_fraction: float = DEFAULT_VAL_FRACTION,
    val_inputs: Sequence[Path] = (),
    workers: int | None = None,
    max_bad_share: float = DEFAULT_MAX_BAD_SHARE,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    progress: TextIO | None = sys.stderr,
) -> Manifest:
    """Make `output` a prepared corpus of the JSON Lines files `inputs`, or reuse it if it is one already.

    The result depends on the content of the files and on the settings, never on `workers` (default: all cores) or
    chance. Memory stays constant but for 110 bytes a distinct document, with `dedup` "near" up to 1,200 (see
    `survey.Survey`). With `val_inputs`, `val_fraction` counts as 0. `progress` None is silent. UserError for bad
    input; then `output` is as it was.
    """
    settings = normalise(
        {
            "tokenizer": Path(tokenizer) if tokenizer else None,
            "vocab_size": vocab_size,
            "dedup": dedup,
            "repetition": repetition,
            "val_fraction": val_fraction,
            "val_inputs": [Path(path) for path in val_inputs],
            "max_bad_share": max_bad_share,
            "shard_tokens": shard_tokens,
        }
    )
    job = Job([Path(path) for path in inputs], settings, Progress(progress))
    _check(job, workers)
    output = Path(output)
    check_replaceable(output)
    name = fingerprint(job.inputs, **settings)
    manifest = _reusable(output, name, job.progress)
    if manifest is not None:
        return manifest
    try:
        with replacing(output) as folder, WorkerPool(_worker_count(job, workers)) as pool:
            return _build(job, folder, pool, name)
    except OSError as error:  # of the output: the reader turns its own into UserErrors
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None


def _check(job: Job, workers: int | None) -> None:
    """Collect every problem with the arguments, then report all of them at once."""
    s = job.settings
    problems = []
    if not job.inputs:
        problems.append("--input: give at least one JSON Lines file")
    for path in (*job.inputs, *s["val_inputs"]):
        if not path.is_file():
            problems.append(f"{path}: {'is a folder; give the files in it' if path.is_dir() else 'no such file'}")
    if s["dedup"] not in DEDUP_CHOICES:
        problems.append(f"--dedup {s['dedup']}: must be none, exact or near")
    if s["repetition"] not in REPETITION_CHOICES:
        problems.append(f"--repetition {s['repetition']}: must be drop or keep")
    if s["vocab_size"] is not None and not MIN_ENTRIES <= s["vocab_size"] <= MAX_ENTRIES:
        problems.append(f"--vocab_size {s['vocab_size']}: must be from {MIN_ENTRIES:,} to {MAX_ENTRIES:,}")
    if not 0 <= s["val_fraction"] < 1:
        problems.append(f"--val_fraction {s['val_fraction']}: must be at least 0 and below 1")
    if not 0 <= s["max_bad_share"] <= 1:
        problems.append(f"--max_bad_share {s['max_bad_share']}: must be from 0 to 1")
    if s["shard_tokens"] < 1:
        problems.append(f"--shard_tokens {s['shard_tokens']}: must be at least 1")
    if workers is not None and workers < 1:
        problems.append(f"--workers {workers}: must be at least 1")
    if problems:
        raise UserError("\n".join(problems))
    if s["tokenizer"] is not None:
        special_ids(load_tokenizer(s["tokenizer"]))


def _reusable(output: Path, name: str, progress: Progress) -> Manifest | None:
    """The manifest of `output` if it is whole and was made from the same content and settings."""
    if not (output / MANIFEST_NAME).exists():
        return None
    try:
        manifest = Manifest.read(output)
        if manifest.fingerprint != name:
            return None
        Corpus.open(output)
        report.read(output)
    except UserError as error:
        progress.say(f"preparing again: {error}")
        return None
    progress.say(f"{output}: already prepared from the same content and settings; reused")
    return manifest


def _worker_count(job: Job, workers: int | None) -> int:
    """Processes to start; 0 means to work in this one."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if workers == 1 or job.file_bytes() < IN_PROCESS_BYTES else workers


def _build(job: Job, folder: Path, pool: WorkerPool, name: str) -> Manifest:
    survey = _survey(job, pool)
    job.progress.say(survey.report())
    source = _make_tokenizer(job, folder, pool, survey)
    tokenizer_file = TokenizerFile(folder / TOKENIZER_NAME, sha256_file(folder / TOKENIZER_NAME))
    writers = _pack(job, folder, pool, survey, tokenizer_file)
    tokenizer = load_tokenizer(tokenizer_file.path)
    begin_id, end_id, pad_id = special_ids(tokenizer)
    splits = {split: writer.finish() for split, writer in writers.items()}
    manifest = Manifest(
        format=FORMAT,
        fingerprint=name,
        settings={key: job.settings[key] for key in sorted(job.settings) if key not in ("tokenizer", "val_inputs")},
        inputs=[_describe(path, "val") for path in job.val_inputs] + [_describe(path, "train") for path in job.inputs],
        vocab_size=vocab_size(tokenizer),
        begin_id=begin_id,
        end_id=end_id,
        pad_id=pad_id,
        tokenizer_sha256=tokenizer_file.sha256,
        tokenizer_source=source,
        entropy_nats=round(entropy_nats(writers["train"].frequencies), 6),
        ladder=_measure_ladder(job, folder, splits, vocab_size(tokenizer)),
        exact_duplicates=survey.exact_duplicates,
        dropped_in_val=survey.dropped_in_val,
        skipped={reason: count for reason, count in sorted(survey.skipped.items()) if count},
        bad_lines=survey.bad_lines,
        splits=splits,
    )
    manifest.write(folder)
    figures = text_figures(writers.values())
    report.write(folder, report.build(manifest, figures, survey.duplicates_report(), survey.repetition.report()))
    return manifest


def _measure_ladder(job: Job, folder: Path, splits: dict[str, SplitInfo], entries: int) -> dict[str, Any] | None:
    """The fields of a `ngram_baselines.NGramBaselines`, or None without validation text."""
    if splits["val"].tokens < 2:
        return None
    job.progress.say("reading the tokens once more for the ladder of entropies")
    streams = {name: open_stream(folder, split) for name, split in splits.items()}
    bytes_per_token = splits["val"].bytes / splits["val"].tokens
    found = asdict(ngram_baselines.measure(streams["train"], streams["val"], entries, bytes_per_token))
    return {key: round(value, 6) for key, value in found.items()}


def _describe(path: Path, side: str) -> dict[str, Any]:
    return {"file": path.name, "side": side, "bytes": path.stat().st_size}


def _survey(job: Job, pool: WorkerPool) -> Survey:
    """The first pass."""
    s = job.settings
    sample = HashSubset(0 if s["tokenizer"] else min(MAX_SAMPLE_BYTES, SAMPLE_BYTES_PER_ENTRY * s["vocab_size"]))
    repetition = Repetition(drops=s["repetition"] == "drop")
    survey = Survey(s["dedup"], repetition, s["val_fraction"], bool(job.val_inputs), sample)
    # The ceiling is read when the task is made: by then the sample may have filled up, and less text need travel.
    tasks = ((chunk, from_val_file, survey.wanted, sample.ceiling) for chunk, from_val_file in job.chunks())
    with job.progress.bar("reading", job.file_bytes()) as advance:
        for found in pool.map(survey_chunk, tasks):
            survey.add(found)
            advance(found.file_bytes, survey.chunk_documents[-1])
    if s["dedup"] == "near":
        job.progress.say(f"comparing {len(survey.fates):,} documents for near duplicates")
    survey.finish(s["max_bad_share"], job.inputs, job.val_inputs)
    return survey


def _make_tokenizer(job: Job, folder: Path, pool: WorkerPool, survey: Survey) -> str:
    """Write the tokenizer into `folder`; returns where it comes from, in words."""
    given = job.settings["tokenizer"]
    if given is not None:
        shutil.copyfile(given, folder / TOKENIZER_NAME)
        return f"given: {given.name}"
    sample = survey.sample
    job.progress.say(f"training the tokenizer on {len(sample):,} documents, {sample.size / 1e6:,.1f} MB")
    # In a worker, so that this process never starts the library's threads and may fork later.
    text = pool.call(train_from_sample, sample.texts(), job.settings["vocab_size"], pool.workers > 0)
    (folder / TOKENIZER_NAME).write_text(text, encoding="utf-8")
    return (
        f"trained on the {len(sample):,} training documents ({sample.size:,} bytes) with the smallest hashes, "
        f"limit {sample.budget:,} bytes"
    )


def train_from_sample(texts: list[str], vocab_size: int, parallel: bool) -> str:
    """The JSON of a tokenizer trained on `texts`. Runs in a worker, with all cores if `parallel`."""
    if parallel:
        os.environ[PARALLELISM] = "true"
    try:
        return train_tokenizer(iter(texts), vocab_size).to_str(pretty=True)
    finally:
        os.environ[PARALLELISM] = "false"


def _pack(
    job: Job, folder: Path, pool: WorkerPool, survey: Survey, tokenizer_file: TokenizerFile
) -> dict[str, SplitWriter]:
    """The second pass; returns the writers, still open at their last shard."""
    writers = {name: SplitWriter(folder, name, job.settings["shard_tokens"]) for name in ("train", "val")}
    tasks = ((tokenizer_file, chunk, fates) for chunk, fates in _chunks_with_fates(job, survey))
    with job.progress.bar("packing", sum(survey.chunk_bytes)) as advance:
        for text_bytes, packed in zip(survey.chunk_bytes, pool.map(pack_chunk, tasks), strict=True):
            for name, writer in writers.items():
                writer.add(packed[name])
            advance(text_bytes, sum(part.documents for part in packed.values()))
    return writers


def _chunks_with_fates(job: Job, survey: Survey) -> Iterator[tuple[Chunk, bytes]]:
    start = read = 0
    examples = survey.duplicates.places()
    for read, (chunk, _) in enumerate(job.chunks(), 1):
        documents = survey.chunk_documents[read - 1] if read <= len(survey.chunk_documents) else 0
        wanted = [place for place in examples if start <= place < start + documents]
        if wanted:
            texts = parse_chunk(chunk).texts
            if len(texts) == documents:  # else the worker says that the file has changed
                for place in wanted:
                    survey.duplicates.add_text(place, texts[place - start])
        yield chunk, bytes(survey.fates[start : start + documents])
        start += documents
    if read != len(survey.chunk_documents):
        raise UserError("--input: a file changed while it was read; run again when nothing writes to it")
