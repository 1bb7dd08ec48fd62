"""The corpus that a run trains on: a prepared folder, or one that is made from the user's text or sample stories."""

from __future__ import annotations

from pathlib import Path

from common.console import Console
from common.errors import UserError
from corpus.manifest import Manifest
from corpus.mixture import split_weights
from corpus.settings import PreparationSettings
from corpus.shards import Corpus, MaskedStream
from model import ModelConfig
from training.base_model import check_tokenizer
from training.config.command_line import Options, model_config
from training.config.defaults import PREPARATION_FLAGS, data_name, is_prepared, vocab_size
from training.processes.process_group import World

DATA_FOLDER = Path("data")
# Stories, and whether of the hamlet (fewer people and plots) rather than the village: minutes on either device
SAMPLE_STORIES = {"cpu": (44_000, True), "cuda": (200_000, False)}


def prepare_data(options: Options, device_kind: str, console: Console) -> Path:
    """Return the folder of the prepared corpus, made from text or from the sample corpus if need be; rank 0 only."""
    if folder := given_corpus(options):
        return folder
    inputs, weights = split_weights(options.data)
    if not inputs:
        inputs = [_sample_corpus(device_kind, console)]
    given = {name: getattr(options, name) for name in PREPARATION_FLAGS if getattr(options, name)}
    settings = PreparationSettings(vocab_size=vocab_size(options), weights=weights, **given)
    fingerprint = settings.fingerprint(settings.files(inputs))
    folder = DATA_FOLDER / f"{data_name(options)}-{fingerprint[:12]}"
    if not (folder / "manifest.json").is_file():
        instead = "; --plan_rows N plans without it" if options.plan else ""
        console.say(f"preparing {', '.join(str(path) for path in inputs)} -> {folder}{instead}")
    from corpus.pipeline import prepare  # only rank 0 needs it, and only for text

    manifest = prepare(inputs, folder, settings, progress=console.stream, fingerprint=fingerprint)
    _say_corpus(folder, manifest, console)
    return folder


def given_corpus(options: Options) -> Path | None:
    """Return the prepared folder that --data names; None if it names text, or nothing."""
    inputs, _ = split_weights(options.data)
    return inputs[0] if len(inputs) == 1 and is_prepared(inputs[0]) else None


def open_corpus(options: Options, folder: Path, world: World) -> Corpus:
    """Open what `prepare_data` has returned on rank 0; one rank of each machine compares the hashes of its files.

    Rank 0 has done so where it was made from text: as the shards were written, or before they were used again.
    """
    hashed = world.rank == 0 and given_corpus(options) is None
    return Corpus.open(folder, verify="hash" if world.local_rank == 0 and not hashed else "size")


def _say_corpus(folder: Path, manifest: Manifest, console: Console) -> None:
    """Say what a run trains on, and what was left out of it."""
    from corpus.report import CorpusReport, left_out_line, mixture_lines

    train, val = manifest.splits["train"], manifest.splits["val"]
    console.say(
        f"corpus: {folder}: {train.documents:,} documents, {train.tokens:,} tokens to train on; "
        f"{val.documents:,} documents, {val.tokens:,} tokens to validate"
    )
    for line in (left_out_line(manifest, CorpusReport.read(folder)), *mixture_lines(manifest)):
        if line:
            console.say(line)


def _sample_corpus(device_kind: str, console: Console) -> Path:
    """Return the file of the stories that a first run learns from, written once."""
    count, hamlet = SAMPLE_STORIES[device_kind]
    path = DATA_FOLDER / f"sample-{'hamlet' if hamlet else 'village'}-{count}.jsonl"
    if not path.is_file():
        from sample_stories import write_sample_corpus  # a second, which a run on other text need not wait

        console.say(f"no --data given: writing {count:,} sample stories to {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sample_corpus(path, count, hamlet=hamlet)
    return path


def corpus_model(options: Options, corpus: Corpus) -> ModelConfig:
    """Return the network that the flags describe, with the vocabulary of the corpus."""
    made = corpus.manifest
    check_tokenizer(options.init_from, corpus)
    entries = vocab_size(options) if options.init_from else made.vocab_size  # a model may have more than its tokenizer
    return model_config(options, vocab_size=entries, bos_id=made.bos_id, eos_id=made.eos_id, pad_id=made.pad_id)


def validation_remark(corpus: Corpus, seq_len: int) -> str | None:
    """Return what to know of a split that is too short to judge a model by, None of others."""
    tokens = corpus.manifest.splits["val"].tokens
    if tokens < 2:
        return (
            "there is no validation text: no validation loss, no best model, no use of --patience; give more "
            "text, or some with prepare.py --val_input"
        )
    if tokens <= seq_len:
        return (
            f"the validation text has {tokens:,} tokens, less than a row of {seq_len:,}: its loss, the best model and "
            "--patience rest on these alone; give more text, or some with prepare.py --val_input"
        )
    return None


def packing_line(corpus: Corpus, seq_len: int) -> str:
    """Return how the conversations of a corpus lie in rows; empty for a corpus of texts alone.

    Of a mixture it says what share of the loss each source has: of a text every token counts, of a conversation few.
    """
    stream = corpus.split("train")
    if not isinstance(stream, MaskedStream):
        return ""
    packed = stream.packed(seq_len)
    tokens, targets, rows = int(packed.lengths.sum()), int(packed.targets.sum()), len(packed)
    line = f"conversations: {rows:,} rows, {tokens / max(1, rows * (seq_len + 1)):.1%} full; {targets:,} tokens count"
    if sources := corpus.source_rows(seq_len):
        means = [packed.targets[source.first : source.first + source.count].mean() for source in sources]
        counted = [source.weight * float(mean) for source, mean in zip(sources, means, strict=True)]
        shares = (f"{part / sum(counted):.1%} from {s.name}" for part, s in zip(counted, sources, strict=True))
        line += f"; of the loss {', '.join(shares)}"
    cut = ((packed.split, "longer than a row and cut"), (packed.shortened, "answers without their end"))
    kinds = (*cut, (packed.left_out, "parts without room for an answer left out"))
    return "; ".join([line, *(f"{count:,} {what}" for count, what in kinds if count)])


def training_rows(corpus: Corpus, seq_len: int) -> int:
    """Return how many rows of `seq_len` tokens an epoch has; raise UserError if there is none."""
    rows = corpus.split("train").num_rows(seq_len)
    if rows < 1:
        tokens = corpus.manifest.splits["train"].tokens
        raise UserError(
            f"{corpus.folder}: {tokens:,} training tokens are less than one row of {seq_len}: give more text or "
            "a smaller --max_seq_len"
        )
    return rows
