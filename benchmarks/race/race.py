"""Time to loss: a peer's trainer and ours, one after the other on the same cores, text and model shape.

    python -m benchmarks.speed --only race --peer ../minimind --race_train train.jsonl.gz --race_val val.jsonl.gz

Without text of your own the race is over the project's sample stories. Both sides' weights are kept along the way and
judged afterwards by one program on the same held-out documents (heldout.py); the trainers' own losses are not used. Two
clocks: training seconds from the first step on, and the same from the command's start, so with imports, preparation and
compilation. The peer's saves, and our evaluations with what we write then, are in neither clock; they are stated.
The peer trains for one epoch at the best rate and batch of a search of its own, with the tokenizer that it brings.
Ours trains with one that prepare.py makes of the text, of as many entries, in the time that it takes; and once more
with the peer's. Bits a byte are the same unit for both; a token is not, so what was read is also told in bytes of text,
at the bytes a token that each tokenizer has on the held-out documents.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.inputs import Skip
from benchmarks.race import heldout, ours
from benchmarks.race import table as race_table
from benchmarks.race.flags import RUNS, add_flags
from benchmarks.race.peers import Course, Driver, Settings, Size, fingerprint, hf_trainer, minimind, nanogpt
from benchmarks.race.peers.search import Found, Memory, Trial, search
from benchmarks.race.table import WORDS, compare, verdict
from common.errors import UserError
from corpus.manifest import TOKENIZER_NAME, Manifest
from corpus.tokenizer import load_tokenizer, vocab_size
from sample_stories import write_sample_corpus

NAME = "race"
table = race_table.table
__all__ = ["NAME", "add_flags", "measure", "table"]
Say = Callable[[str], None]
_PEERS = (
    f"give a checkout of MiniMind ({minimind.CLONE}) or of nanoGPT ({nanogpt.CLONE}), or the word "
    f"{hf_trainer.WORD} for the Trainer of that package"
)
_NO_PEER = f"no peer to race against: with --peer, {_PEERS}"
_STORIES, _HELD_OUT_STORIES, _HELD_OUT_SEED = 4000, 200, 1


@dataclass(frozen=True)
class _Track:
    """What both sides are given."""

    documents: Path
    held_out_documents: Path
    held_out: heldout.HeldOut
    size: Size
    cores: int
    work: Path
    text: dict[str, Any]


def measure(work: Path, flags: argparse.Namespace, say: Say) -> dict[str, Any]:
    """The whole race; Skip without a peer."""
    work = work / "race"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = Size(flags.race_width, flags.race_layers, flags.race_max_seq_len)
    if flags.peer is None:
        raise Skip(_NO_PEER)
    work.mkdir(parents=True, exist_ok=True)
    source, held_out_source = _sources(work, flags)
    texts, held_out_texts = heldout.read_texts(source)[: flags.race_documents], heldout.read_texts(held_out_source)
    peer = driver(flags.peer, work, size, cores, texts, flags.race_tokenizer)
    rows = heldout.write_rows(
        work / "rows.npz",
        held_out_texts,
        peer.tokenizer,
        bos_id=peer.bos_id,
        eos_id=peer.eos_id,
        max_seq_len=size.max_seq_len,
    )
    facts = {
        "train": source.name,
        "held_out": held_out_source.name,
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "held_out_documents": len(held_out_texts),
        "held_out_bytes": rows.text_bytes,
        "held_out_tokens": rows.tokens,
    }
    track = _Track(
        _write(work / "train.jsonl", texts), _write(work / "val.jsonl", held_out_texts), rows, size, cores, work, facts
    )
    same = {"text": track.text, "size": asdict(size), "shape": peer.shape(), "cores": cores}
    # first, since too little text would waste the peer's run
    prepared = _texts(track, peer, flags.race_runs or default_runs(peer))
    theirs = (
        earlier(flags.race_peer_from, same, peer.source) if flags.race_peer_from else _theirs(track, flags, peer, say)
    )
    return same | {"peer": theirs, "ours": _ours(track, flags, peer, prepared, theirs, say)}


def default_runs(peer: Driver) -> list[str]:
    """All of ours; with a peer whose tokenizer was made of the text, as ours is, none is run twice."""
    return [name for name in RUNS if name != "same_tokenizer" or peer.own_tokenizer]


def _theirs(track: _Track, flags: argparse.Namespace, peer: Driver, say: Say) -> dict[str, Any]:
    """The peer's side: its search, its run."""
    settings, found = _settings(peer, track, flags, say)
    say(f"{peer.name} ({settings}): one epoch of {track.text['documents']:,} documents")
    course = peer.train(settings, track.documents, track.work / "peer", flags.race_points)
    say(f"  {course.seconds:.0f} s of training, {course.start_up:.0f} s before it")
    side = _side(course, track, peer.kind, peer.pythonpath, peer.precision, track.held_out)
    say(f"  {side['curve'][-1]['bits_per_byte']:.3f} bits a byte at its end")
    return side | {
        "name": peer.name,
        "source": peer.source,
        "recommended": peer.recommended(),
        "chosen": asdict(settings),
        "search": found,
    }


def earlier(path: Path, same: dict[str, Any], source: str) -> dict[str, Any]:
    """The peer's side of an earlier race; UserError if that was another race."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = found.get("race", found)
        differs = [name for name, value in same.items() if found[name] != json.loads(json.dumps(value))]
        differs += ["the peer's version"] if found["peer"]["source"] != source else []
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"--race_peer_from {path} is no result of a race ({error}): give its race.json") from None
    if differs:
        raise UserError(f"--race_peer_from {path} differs in {', '.join(differs)}: run the peer again")
    return found["peer"] | {"from_earlier_run": True}


def driver(
    peer: Path | str, work: Path, size: Size, cores: int, texts: Sequence[str], tokenizer: Path | None
) -> Driver:
    """That of the trainer which lies in the folder, or of the package; UserError for a folder that holds none."""
    path = Path(peer)
    if str(peer) == hf_trainer.WORD:
        return hf_trainer.HFTrainer(work, size, cores, texts, tokenizer)
    if minimind.is_here(path):
        return minimind.MiniMind(path, work, size, cores)
    if nanogpt.is_here(path):
        return nanogpt.NanoGPT(path, work, size, cores, texts, tokenizer)
    raise UserError(f"--peer {peer} is no trainer that the race knows: {_PEERS}")


def _sources(work: Path, flags: argparse.Namespace) -> tuple[Path, Path]:
    """Training and held-out documents: those given, or sample stories."""
    if (flags.race_train is None) != (flags.race_val is None):
        raise UserError("--race_train and --race_val belong together: give both, or none for the sample stories")
    if flags.race_train is not None:
        return flags.race_train, flags.race_val
    source, held_out_source = work / "stories.jsonl", work / "stories_val.jsonl"
    write_sample_corpus(source, _STORIES)
    write_sample_corpus(held_out_source, _HELD_OUT_STORIES, _HELD_OUT_SEED)
    return source, held_out_source


def _write(path: Path, texts: Sequence[str]) -> Path:
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _settings(peer: Driver, track: _Track, flags: argparse.Namespace, say: Say) -> tuple[Settings, dict[str, Any]]:
    """Those given, or the best of a search, with what the search came to."""
    if flags.race_peer_settings:
        return flags.race_peer_settings, {"given": True}
    texts = heldout.read_texts(track.documents)
    count = min(flags.race_search_documents, len(texts))
    sample = _write(track.work / "sample.jsonl", texts[:: len(texts) // count][:count])
    budget = flags.race_search_budget
    say(f"{peer.name}: looking for its best learning rate and batch on {count:,} documents, at most {budget:.0f} s")
    found = search(
        _trial_on(peer, track, sample),
        flags.race_search_rates,
        flags.race_search_batches,
        budget=budget,
        memory=Memory(track.work / "search.json", search_key(peer, track.size, track.cores, sample)),
        say=say,
    )
    say(f"  best: {found.best.settings} ({found.cost:.0f} s for {len(found.trials)} trials)")
    return found.best.settings, searched(found, count, budget)


def search_key(peer: Driver, size: Size, cores: int, sample: Path) -> str:
    """What a trial's result depends on beside its settings."""
    return (
        f"{peer.name} {peer.source}, {size.width}x{size.layers}x{size.max_seq_len}, {cores} cores, sample "
        f"{fingerprint([sample])}"
    )


def searched(found: Found, documents: int, budget: float) -> dict[str, Any]:
    """For the result file."""
    return {
        "documents": documents,
        "budget_seconds": budget,
        "cost_seconds": found.cost,
        "complete": found.complete,
        "trials": [asdict(trial) for trial in found.trials],
    }


def _trial_on(peer: Driver, track: _Track, sample: Path) -> Callable[[Settings], Trial]:
    def run(settings: Settings) -> Trial:
        started = time.monotonic()
        course = peer.train(settings, sample, track.work / "trial", points=1)
        score = heldout.judge(
            track.held_out, peer.kind, [course.points[-1].weights], pythonpath=peer.pythonpath, threads=track.cores
        )[0]
        return Trial(settings, score.bits_per_byte, course.seconds, time.monotonic() - started)

    return run


def _side(
    course: Course, track: _Track, kind: str, pythonpath: Path | None, precision: str, held_out: heldout.HeldOut
) -> dict[str, Any]:
    """A run's figures and its curve on the held-out text."""
    scores = heldout.judge(
        held_out, kind, [point.weights for point in course.points], pythonpath=pythonpath, threads=track.cores
    )
    curve = [
        {
            "step": point.step,
            "tokens": point.tokens,
            "seconds": point.seconds,
            "since_start": course.start_up + point.seconds,
            "bits_per_byte": score.bits_per_byte,
            "nats_per_token": score.nats_per_token,
        }
        for point, score in zip(course.points, scores, strict=True)
    ]
    side = course.figures() | {
        "precision": precision,
        "tokens_per_second": course.tokens / course.seconds,
        "parameters": scores[-1].parameters if scores else None,
        "curve": curve,
        "held_out_tokens": held_out.tokens,
    }
    return in_text(side, held_out.text_bytes / held_out.tokens)


def in_text(side: dict[str, Any], bytes_per_token: float) -> dict[str, Any]:
    """The side with bytes of text beside its tokens."""
    curve = [point | {"text_bytes": point["tokens"] * bytes_per_token} for point in side["curve"]]
    return side | {"curve": curve, "text_bytes_per_second": side["tokens_per_second"] * bytes_per_token}


def _ours(
    track: _Track, flags: argparse.Namespace, peer: Driver, prepared: dict[str, _Text], theirs: dict[str, Any], say: Say
) -> dict[str, Any]:
    """Our runs by name: `same_tokenizer` in the best precision, `equal` only if the best one is another."""
    done: dict[str, Any] = {}
    for name in sorted(prepared, key=RUNS.index):
        if name == "equal" and "best" in done and done["best"]["precision"] == peer.precision:
            done[name] = done["best"]
            continue
        text = prepared[name]
        length = _length(flags, text.corpus.tokens / next(iter(prepared.values())).corpus.tokens)
        settings = [*flags.race_set, *(_precision_settings(peer.precision) if name == "equal" else [])]
        recipe = ours.Recipe(
            flags.race_config,
            settings,
            shlex.split(flags.race_train_flags),
            length,
            peer.shape(),
            track.size.max_seq_len,
            flags.race_processes,
            track.cores,
            flags.race_our_points,
        )
        say(f"ours, {WORDS[name]}: {' '.join(length)}")
        course, precision = ours.train(recipe, text.corpus, track.work / f"ours-{name}")
        side = _side(course, track, "ours", None, precision, text.held_out)
        done[name] = side | {
            "preparation_seconds": text.corpus.seconds,
            "processes": flags.race_processes,
            "against_peer": compare(side, theirs),
        }
        say("\n".join(verdict(done[name])))
    return done


def _length(flags: argparse.Namespace, more: float) -> list[str]:
    """Flags of train.py: the same text in `more` times as many tokens takes so many times the steps."""
    if flags.race_steps is None:
        return ["--epochs", str(flags.race_epochs)]
    return ["--max_steps", str(round(flags.race_steps * more))]


@dataclass(frozen=True)
class _Text:
    """The training text prepared, and the held-out rows in the same tokens."""

    corpus: ours.Corpus
    held_out: heldout.HeldOut


def _texts(track: _Track, peer: Driver, runs: Sequence[str]) -> dict[str, _Text]:
    """By run, those of our own tokenizer first."""
    own = [name for name in RUNS if name in runs and name != "same_tokenizer"]
    found = dict.fromkeys(own, _trained(track, peer)) if own else {}
    return found | ({"same_tokenizer": _given(track, peer)} if "same_tokenizer" in runs else {})


def _given(track: _Track, peer: Driver) -> _Text:
    """With the peer's tokenizer."""
    return _Text(_prepared(track, "corpus", "--tokenizer", peer.tokenizer.absolute()), track.held_out)


def _trained(track: _Track, peer: Driver) -> _Text:
    """With a tokenizer made of the text; UserError if it has too little text for as many entries as the peer's has."""
    entries = vocab_size(load_tokenizer(peer.tokenizer))
    corpus = _prepared(track, "corpus_trained", "--vocab_size", entries)
    manifest = Manifest.read(corpus.folder)
    if manifest.vocab_size != entries:
        raise UserError(
            f"the text is too little for a tokenizer of {entries:,} entries ({manifest.vocab_size:,} "
            "found), so the models would differ in size: give more documents, or --race_runs "
            "same_tokenizer"
        )
    rows = heldout.write_rows(
        track.work / "rows_trained.npz",
        heldout.read_texts(track.held_out_documents),
        corpus.folder / TOKENIZER_NAME,
        bos_id=manifest.bos_id,
        eos_id=manifest.eos_id,
        max_seq_len=track.size.max_seq_len,
    )
    return _Text(corpus, rows)


def _prepared(track: _Track, name: str, *tokenizer: object) -> ours.Corpus:
    return ours.prepare(track.documents, track.held_out_documents, track.work / name, track.cores, tokenizer)


def _precision_settings(precision: str) -> list[str]:
    return [f"bf16.enabled={str(precision == 'bf16').lower()}"]
