"""What a prepared corpus is made of: report.json in its folder, and the same for people, a line a fact."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, Field

from common.records import Count, Number, Record
from corpus.cleaning.language import FORMS, SCRIPTS
from corpus.conversations.figures import AnswerFigures
from corpus.encoding import LENGTH_TYPE
from corpus.manifest import REPORT_NAME, Manifest, read_record
from corpus.packing import TextFigures
from corpus.scan import Scan
from corpus.split import LEFT_OUT, REPETITIVE

EXAMPLES_SHOWN = 3
EXAMPLE_CHARACTERS = 40
LABEL_WIDTH = 13
WIDTH = 110
TRACE = 0.0005  # a smaller share rounds to 0.0 %
EXPLANATIONS = {
    "uniform": "every token as likely as any other",
    "unigram": "knows how frequent each token is",
    "bigram": "and what follows the token before",
    "trigram": "and what follows the two tokens before",
}
Facts = Iterator[tuple[str, str]]
"""Label and text; a fact without a label goes on with the one before."""

Name = Annotated[str, Field(pattern=r"^[\w-]{1,100}$")]
"""A key that can be shown to people."""


class Percentiles(Record):
    """Tokens of a document or of its targets: so many that a share of the documents has no more."""

    min: Count
    p10: Count
    p50: Count
    p90: Count
    p99: Count
    max: Count


class LengthHistogram(Record):
    """Documents by length; the counts lie between neighbouring edges, the upper one excluded."""

    edges: list[Count]
    counts: list[Count]


class Lengths(Record):
    """How long the documents are, BOS and EOS included."""

    tokens: Percentiles
    histogram: LengthHistogram


class ConversationFigures(Record):
    """What the conversations of both splits are like; see `AnswerFigures`.

    `target_lengths` are percentiles of the targets of a conversation.
    """

    conversations: Count
    turns: Count
    answers: Count
    system_texts: Count
    targets: Count
    target_lengths: Percentiles
    copied: Count
    examples: list[str]


class DuplicateExample(Record):
    """The beginnings of two documents that repeat each other."""

    kept: str
    dropped: str
    similarity: Number


class Duplicates(Record):
    """Documents that repeat others; `near_in_val` of the near ones were left out of train for the sake of val."""

    exact: Count
    near: Count
    near_in_val: Count
    examples: list[DuplicateExample]


class RepetitiveExample(Record):
    """The beginning of a document over a limit, and which."""

    rule: Name
    value: Number
    text: str


class RepetitionFigures(Record):
    """Documents that repeat themselves; `shares` are percentiles of each measure."""

    scored: Count
    dropped: Count
    thresholds: dict[Name, Number]
    by_rule: dict[Name, Count]
    shares: dict[Name, dict[Name, Number]]
    examples: list[RepetitiveExample]


class LeftOut(Record):
    """Documents that were read and not packed."""

    documents: Count
    bytes: Count


class BaselineLoss(Record):
    """The loss of one n-gram baseline on the validation text."""

    nats: Number
    bits_per_byte: Number


class CorpusReport(Record):
    """The content of report.json.

    All but `duplicates` and `repetition`, which are about what was left out, describes the documents of both splits
    together. Shares are from 0 to 1. `traditional_share` is of the Han characters that the two standards write
    differently, None without any; `languages` are recognized by script alone (`cleaning.language`).
    """

    version: Literal[1] = 1
    documents: Count
    tokens: Count
    bytes: Count
    characters: Count
    lengths: Lengths
    duplicates: Duplicates
    repetition: RepetitionFigures | None
    scripts: dict[Name, Number]
    traditional_share: Number | None
    languages: dict[Name, Number]
    characters_per_token: dict[Name, Number]
    # Not in folders that were prepared before 2026-11-29: what was left out by reason ("exact", "near", "repetition",
    # "overlap"); documents that the tokenizer does not give back, and the beginning of one; special tokens that stand
    # in texts; vocabulary entries that the training text has none of.
    left_out: dict[Name, LeftOut] | None = None
    changed: Count = 0
    changed_example: str = ""
    special_tokens: Count = 0
    unused_entries: Count | None = None
    # "ladder" in folders that were prepared before 2026-11-29
    ngram_baselines: dict[Name, BaselineLoss] | None = Field(validation_alias=AliasChoices("ngram_baselines", "ladder"))
    conversations: ConversationFigures | None = Field(default=None, exclude_if=lambda value: value is None)

    def write(self, folder: Path) -> None:
        """Write the report to `folder`/report.json."""
        text = json.dumps(self.model_dump(), ensure_ascii=False, indent=2)
        (folder / REPORT_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> CorpusReport:
        """Read the report of a prepared folder; UserError if it is missing or not one of this version."""
        return read_record(cls, folder, REPORT_NAME)


def build_report(
    manifest: Manifest, figures: TextFigures, scan: Scan, unused: int, answers: Sequence[AnswerFigures]
) -> CorpusReport:
    """Return the report of a corpus from what its two passes counted."""
    splits, baselines = manifest.splits.values(), manifest.ngram_baselines
    traditional, simplified = (figures.scripts.get(form, 0) for form in FORMS)
    two_forms = traditional + simplified
    losses = baselines.losses().items() if baselines else ()
    said = AnswerFigures()
    for of_split in answers:
        said.add(of_split)
    return CorpusReport.model_validate(
        {
            **{key: sum(getattr(s, key) for s in splits) for key in ("documents", "tokens", "bytes", "characters")},
            "lengths": _lengths(np.frombuffer(figures.lengths, LENGTH_TYPE)),
            "duplicates": scan.duplicates(figures.examples),
            "repetition": scan.repetition.report(scan.count(REPETITIVE)),
            "left_out": {
                why: {"documents": scan.count(side), "bytes": figures.left_out_bytes[side]}
                for side, why in LEFT_OUT.items()
            },
            **{key: getattr(figures, key) for key in ("changed", "changed_example", "special_tokens")},
            "unused_entries": unused,
            "scripts": _shares({script: figures.scripts.get(script, 0) for script in SCRIPTS}),
            "traditional_share": round(traditional / two_forms, 6) if two_forms else None,
            "languages": _shares(figures.languages),
            "characters_per_token": {name: split.characters_per_token for name, split in manifest.splits.items()},
            "ngram_baselines": baselines
            and {
                name: {"nats": nats, "bits_per_byte": round(baselines.bits_per_byte(nats), 6)} for name, nats in losses
            },
            "conversations": vars(said) | {"target_lengths": _percentiles(np.array(said.lengths))}
            if said.conversations
            else None,
        }
    )


def _percentiles(lengths: np.ndarray) -> dict[str, int]:
    shares = {"min": 0, "p10": 10, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    return {name: int(np.percentile(lengths, at, method="inverted_cdf")) for name, at in shares.items()}


def _lengths(lengths: np.ndarray) -> dict[str, Any]:
    """Return percentiles and histogram; `lengths` is never empty, since a corpus without documents is refused."""
    tokens = _percentiles(lengths)
    lowest, highest = tokens["min"].bit_length(), tokens["max"].bit_length()
    edges = [2**power for power in range(max(0, lowest - 1), highest + 1)]
    return {"tokens": tokens, "histogram": {"edges": edges, "counts": np.histogram(lengths, edges)[0].tolist()}}


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Return shares of the whole, the largest first; what never occurs has none."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name: round(count / total, 6) for name, count in ordered if count}


def lines(manifest: Manifest, report: CorpusReport) -> list[str]:
    """Return manifest and report for people, a line a fact, wrapped at WIDTH columns."""
    facts = [*_text_facts(manifest, report), *(("mixture", line) for line in mixture_lines(manifest))]
    facts += [*_left_out_facts(manifest, report), *_baseline_facts(manifest)]
    wrapped = {"subsequent_indent": " " * LABEL_WIDTH, "break_long_words": False, "break_on_hyphens": False}
    return [textwrap.fill(f"{label:{LABEL_WIDTH}}{text}", WIDTH, **wrapped) for label, text in facts]


def loss_to_beat(manifest: Manifest) -> str:
    """Return the n-gram baselines in one line, for the start of a run."""
    baselines = manifest.ngram_baselines
    unigram = manifest.entropy_nats if baselines is None else baselines.unigram
    line = f"{unigram:.3f} nats a token (a model that knows only how frequent each token is)"
    if baselines is None:
        return line
    return f"{line}, {baselines.bigram:.3f} (and the token before), {baselines.trigram:.3f} (and the two before)"


def left_out_line(manifest: Manifest, report: CorpusReport) -> str:
    """Return in a line what was read and not packed, for the start of a run; empty if there is nothing."""
    names = {"repetition": "that repeat themselves (--repetition keep takes them)"}
    names |= {"exact": "equal to others", "near": "much like others", "overlap": "of train that val holds too"}
    found = {why: report.left_out[why] for why in names if report.left_out and report.left_out[why].documents}
    parts = [f"{left.documents:,} documents {names[why]}{_size(report, why)}" for why, left in found.items()]
    parts += [f"{count:,} {reason.replace('_', ' ')}" for reason, count in manifest.skipped.items()]
    return f"left out: {'; '.join(parts)}" if parts else ""


def mixture_lines(manifest: Manifest) -> list[str]:
    """Return a line for each source of a mixture: its share of the rows, and how often an epoch reads it."""
    sources = manifest.sources or []
    total = sum(source.tokens for source in sources)
    return [
        f"{_percent(source.weight)} of the rows from {source.name} ({_percent(source.tokens / max(1, total))} of the "
        f"text: {source.documents:,} documents, {source.tokens:,} tokens), read "
        f"{source.weight * total / max(1, source.tokens):.2f} times an epoch"
        for source in sources
    ]


def _text_facts(manifest: Manifest, report: CorpusReport) -> Facts:
    for name, split in manifest.splits.items():
        size = f"{split.documents:,} documents, {split.bytes / 1e6:,.1f} MB, {split.tokens:,} tokens"
        yield name, f"{size}, {split.characters_per_token:.2f} characters a token" if split.tokens else size
    unused = f" ({report.unused_entries:,} of them never occur in train)" if report.unused_entries else ""
    yield "tokenizer", f"{manifest.vocab_size:,} entries{unused}, {manifest.tokenizer_source}"
    at = report.lengths.tokens
    shares = f"half up to {at.p50:,}, 90 % up to {at.p90:,}, 99 % up to {at.p99:,}"
    yield "lengths", f"{at.min:,} to {at.max:,} tokens a document, BOS and EOS included; {shares}"
    yield "characters", _listing(report.scripts)
    if report.traditional_share is not None:
        yield "", f"of the Han characters with two forms, {_percent(report.traditional_share)} are traditional"
    if report.conversations:
        yield from _conversation_facts(report.conversations, report.tokens)
    yield "languages", f"of documents, recognized by script: {_listing(report.languages)}"


def _conversation_facts(found: ConversationFigures, tokens: int) -> Facts:
    with_system = f", {found.system_texts:,} with a system text" if found.system_texts else ""
    turns = f"{found.turns:,} turns, {found.answers:,} of them answers{with_system}"
    yield "conversations", f" {found.conversations:,} with {turns}"
    at = found.target_lengths
    shares = f"{at.min:,} to {at.max:,} a conversation, half up to {at.p50:,}, 90 % up to {at.p90:,}"
    counted = f"{found.targets:,} of {tokens:,} tokens count in the loss: the answers and the marks that end them"
    yield "", f"{counted}; {shares}"
    yield "", f"{found.copied:,} answers stand word for word in the turn before them, and teach a parrot"
    for example in found.examples:
        yield "", f"such as {_quote(example)}"


def _left_out_facts(manifest: Manifest, report: CorpusReport) -> Facts:
    duplicates, repetition = report.duplicates, report.repetition
    dedup = manifest.settings["dedup"]
    near = f", {duplicates.near:,} near ones" if dedup == "near" else ""
    near += f", {duplicates.near_in_val:,} of those in val" if duplicates.near_in_val else ""
    fate = "kept" if dedup == "none" else f"left out{_size(report, 'exact', 'near')}"
    yield "duplicates", f"{duplicates.exact:,} exact{near} ({fate})"
    # Those whose texts differ to the eye show more, so they come first.
    for pair in sorted(duplicates.examples, key=lambda pair: pair.kept == pair.dropped)[:EXAMPLES_SHOWN]:
        yield "", f"{pair.similarity:4.0%} {_quote(pair.kept)}"
        if pair.kept != pair.dropped:
            yield "", f"like {_quote(pair.dropped)}"
    if repetition is not None:
        rules = ", ".join(f"{rule} {count:,}" for rule, count in repetition.by_rule.items() if count) or "none"
        left_out = f"{repetition.dropped:,} of {repetition.scored:,} documents left out{_size(report, 'repetition')}"
        yield "repetition", f"{left_out}; over the limits by rule: {rules}"
        for example in repetition.examples[:EXAMPLES_SHOWN]:
            yield "", f"{example.rule} {example.value:.2f}: {_quote(example.text)}"
    if manifest.dropped_in_val:
        size = _size(report, "overlap")
        yield "overlap", f"{manifest.dropped_in_val:,} left out of train{size}, since val holds them too"
    if report.changed:
        what = "documents do not come back from the tokenizer as they were"
        yield "changed", f"{report.changed:,} {what}: {_quote(report.changed_example)}"
    if report.special_tokens:
        yield "special", f"{report.special_tokens:,} special tokens stand in texts, and act as such there"
    if manifest.skipped:
        yield "skipped", ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items())


def _baseline_facts(manifest: Manifest) -> Facts:
    baselines = manifest.ngram_baselines
    if baselines is None:
        yield "baselines", "none: there is no validation text to measure n-gram models on"
        return
    train, val = f"{baselines.train_tokens:,} training tokens", f"{baselines.tokens:,} validation tokens"
    yield "baselines", f"loss of n-gram models of {train} on {val}"
    yield "", f"{'':9}{'nats a token':>12}{'bits a byte':>13}"
    for name, nats in baselines.losses().items():
        yield "", f"{name:9}{nats:12.3f}{baselines.bits_per_byte(nats):13.3f}   {EXPLANATIONS[name]}"


def _size(report: CorpusReport, *reasons: str) -> str:
    """Return the bytes that were left out for some reasons, as an addition to their documents; nothing without any."""
    size = sum(report.left_out[why].bytes for why in reasons) if report.left_out else 0
    tokens = size * report.tokens // max(1, report.bytes)
    return f", {size / 1e6:,.1f} MB or about {tokens:,} tokens" if size else ""


def _listing(shares: Mapping[str, float]) -> str:
    """Return shares in per cent; the ones that would round to nothing are only named."""
    large = [f"{name} {_percent(share)}" for name, share in shares.items() if share >= TRACE]
    traces = [name for name, share in shares.items() if share < TRACE]
    return ", ".join(large) + (f", traces of {', '.join(traces)}" if traces else "")


def _percent(share: float) -> str:
    return "under 0.1 %" if 0 < share < TRACE else f"{100 * share:.1f} %"


def _quote(text: str) -> str:
    """Return the start of a text on one line; control characters, which a terminal might obey, become spaces."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= EXAMPLE_CHARACTERS else plain[:EXAMPLE_CHARACTERS] + "..."
