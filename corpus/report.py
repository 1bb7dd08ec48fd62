"""What a prepared corpus is made of: report.json in its folder, and the same for people, a line a fact."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import printable, read_text
from common.shape import COUNT, EACH, NUMBER, TEXT, Maybe, fits
from corpus.cleaning.language import FORMS, SCRIPTS
from corpus.manifest import REPORT_NAME, Manifest
from corpus.ngram_baselines import NGramBaselines

VERSION = 1
PERCENTILES = {"min": 0, "p10": 10, "p50": 50, "p90": 90, "p99": 99, "max": 100}
EXAMPLES_SHOWN = 3
EXAMPLE_CHARACTERS = 40
LABEL_WIDTH = 13
WIDTH = 110
TRACE = 0.0005  # a smaller share rounds to 0.0 %

RUNGS = {
    "uniform": "every token as likely as any other",
    "unigram": "knows how frequent each token is",
    "bigram": "and what follows the token before",
    "trigram": "and what follows the two tokens before",
}
MOST_BYTES = 16 * 2**20  # of report.json, which has some kilobytes
SHAPE = {
    "documents": COUNT,
    "tokens": COUNT,
    "bytes": COUNT,
    "characters": COUNT,
    "lengths": {"tokens": dict.fromkeys(PERCENTILES, COUNT), "histogram": {"edges": [COUNT], "counts": [COUNT]}},
    "duplicates": {
        "exact": COUNT,
        "near": COUNT,
        "near_in_val": COUNT,
        "examples": [{"kept": TEXT, "dropped": TEXT, "similarity": NUMBER}],
    },
    "repetition": Maybe(
        {
            "scored": COUNT,
            "dropped": COUNT,
            "thresholds": {EACH: NUMBER},
            "by_rule": {EACH: COUNT},
            "shares": {EACH: {EACH: NUMBER}},
            "examples": [{"rule": TEXT, "value": NUMBER, "text": TEXT}],
        }
    ),
    "scripts": {EACH: NUMBER},
    "traditional_share": Maybe(NUMBER),
    "languages": {EACH: NUMBER},
    "characters_per_token": {EACH: NUMBER},
    "ladder": Maybe({EACH: {"nats": NUMBER, "bits_per_byte": NUMBER}}),
}


@dataclass(frozen=True)
class TextFigures:
    """What packing counted: tokens of every document, characters by script and form, documents by language."""

    lengths: np.ndarray
    scripts: Mapping[str, int]
    languages: Mapping[str, int]


def build(
    manifest: Manifest, figures: TextFigures, duplicates: dict[str, Any], repetition: dict[str, Any] | None
) -> dict[str, Any]:
    """The report as it stands in report.json.

    All but `duplicates` and `repetition`, which tell of what was left out, describes the documents of both splits
    together. Shares are from 0 to 1. `traditional_share` is of the Han characters that the two standards write
    differently, None without any; `languages` is told from scripts alone (`scripts.languages`). Lengths are tokens a
    document, its marks included; the histogram's counts lie between neighbouring edges, the upper one excluded.
    """
    splits = manifest.splits.values()
    ladder = None if manifest.ladder is None else NGramBaselines(**manifest.ladder)
    traditional, simplified = (figures.scripts.get(form, 0) for form in FORMS)
    return {
        "version": VERSION,
        "documents": sum(split.documents for split in splits),
        "tokens": sum(split.tokens for split in splits),
        "bytes": sum(split.bytes for split in splits),
        "characters": sum(split.characters for split in splits),
        "lengths": _lengths(figures.lengths),
        "duplicates": duplicates,
        "repetition": repetition,
        "scripts": _shares({script: figures.scripts.get(script, 0) for script in SCRIPTS}),
        "traditional_share": round(traditional / (traditional + simplified), 6) if traditional + simplified else None,
        "languages": _shares(figures.languages),
        "characters_per_token": {name: split.characters_per_token for name, split in manifest.splits.items()},
        "ladder": ladder
        and {
            name: {"nats": nats, "bits_per_byte": round(ladder.bits_per_byte(nats), 6)} for name, nats in ladder.rungs()
        },
    }


def write(folder: Path, report: dict[str, Any]) -> None:
    """Write `folder`/report.json."""
    text = json.dumps(report, ensure_ascii=False, indent=2)
    (folder / REPORT_NAME).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """The report of a prepared folder; UserError if it is missing or not one of this version."""
    path = folder / REPORT_NAME
    try:
        report = json.loads(read_text(path, MOST_BYTES))
    except FileNotFoundError:
        raise UserError(f"{folder}: no {REPORT_NAME} here; prepare the corpus again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); prepare the corpus again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({printable(error)}); prepare the corpus again") from None
    if not isinstance(report, dict) or report.get("version") != VERSION or not fits(report, SHAPE):
        raise UserError(f"{path}: not a report of this version; prepare the corpus again")
    return report


def lines(manifest: Manifest, report: dict[str, Any]) -> list[str]:
    """Manifest and report for people, a line a fact, wrapped at WIDTH columns."""
    return [*_size_lines(manifest), *_text_lines(report), *_left_out_lines(manifest, report), *_ladder_lines(manifest)]


def loss_to_beat(manifest: Manifest) -> str:
    """The ladder in one line, for the start of a run."""
    if manifest.ladder is None:
        return f"{manifest.entropy_nats:.3f} nats a token (a model that knows only how frequent each token is)"
    ladder = NGramBaselines(**manifest.ladder)
    return (
        f"{ladder.unigram:.3f} nats a token (a model that knows only how frequent each token is), "
        f"{ladder.bigram:.3f} (and the token before), {ladder.trigram:.3f} (and the two before)"
    )


def _lengths(lengths: np.ndarray) -> dict[str, Any]:
    """`lengths` is never empty: a corpus without documents is refused."""
    tokens = {name: int(np.percentile(lengths, at, method="inverted_cdf")) for name, at in PERCENTILES.items()}
    lowest, highest = (int(length).bit_length() for length in (lengths.min(), lengths.max()))
    edges = [2**power for power in range(max(0, lowest - 1), highest + 1)]
    counts = np.histogram(lengths, edges)[0]
    return {"tokens": tokens, "histogram": {"edges": edges, "counts": counts.tolist()}}


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Shares of the whole, the largest first; nothing for what never occurs."""
    total = sum(counts.values())
    ordered = sorted(Counter(counts).items(), key=lambda item: (-item[1], item[0]))
    return {name: round(count / total, 6) for name, count in ordered if count}


def _size_lines(manifest: Manifest) -> list[str]:
    result = []
    for name, split in manifest.splits.items():
        result.append(
            _line(
                name,
                f"{split.documents:,} documents, {split.bytes / 1e6:,.1f} MB, {split.tokens:,} "
                f"tokens, {split.characters_per_token:.2f} characters a token",
            )
        )
    result.append(_line("tokenizer", f"{manifest.vocab_size:,} entries, {manifest.tokenizer_source}"))
    return result


def _text_lines(report: dict[str, Any]) -> list[str]:
    at = report["lengths"]["tokens"]
    result = [
        _line(
            "lengths",
            f"{at['min']:,} to {at['max']:,} tokens a document, marks included; half up to "
            f"{at['p50']:,}, 90 % up to {at['p90']:,}, 99 % up to {at['p99']:,}",
        )
    ]
    result.append(_line("characters", _listing(report["scripts"])))
    if report["traditional_share"] is not None:
        result.append(
            _line("", f"of the Han characters with two forms, {_percent(report['traditional_share'])} are traditional")
        )
    result.append(_line("languages", f"of documents, told by script: {_listing(report['languages'])}"))
    return result


def _left_out_lines(manifest: Manifest, report: dict[str, Any]) -> list[str]:
    duplicates, repetition = report["duplicates"], report["repetition"]
    kept = manifest.settings["dedup"] == "none"
    near = f", {duplicates['near']:,} near ones" if manifest.settings["dedup"] == "near" else ""
    near += f", {duplicates['near_in_val']:,} of those in val" if duplicates["near_in_val"] else ""
    result = [_line("duplicates", f"{duplicates['exact']:,} exact{near} ({'kept' if kept else 'left out'})")]
    # Those whose texts differ to the eye show more, so they come first.
    for example in sorted(duplicates["examples"], key=_looks_alike)[:EXAMPLES_SHOWN]:
        result.append(_line("", f"{example['similarity']:4.0%} {_quote(example['kept'])}"))
        if not _looks_alike(example):
            result.append(_line("", f"like {_quote(example['dropped'])}"))
    if repetition is not None:
        rules = ", ".join(f"{rule} {count:,}" for rule, count in repetition["by_rule"].items() if count)
        result.append(
            _line(
                "repetition",
                f"{repetition['dropped']:,} of {repetition['scored']:,} documents left out; "
                f"over the limits by rule: {rules or 'none'}",
            )
        )
        for example in repetition["examples"][:EXAMPLES_SHOWN]:
            result.append(_line("", f"{example['rule']} {example['value']:.2f}: {_quote(example['text'])}"))
    if manifest.dropped_in_val:
        result.append(_line("overlap", f"{manifest.dropped_in_val:,} left out of train, since val holds them too"))
    if manifest.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items())
        result.append(_line("skipped", reasons))
    return result


def _looks_alike(example: dict[str, Any]) -> bool:
    return example["kept"] == example["dropped"]


def _ladder_lines(manifest: Manifest) -> list[str]:
    if manifest.ladder is None:
        return [_line("ladder", "none: there is no validation text to measure it on")]
    ladder = NGramBaselines(**manifest.ladder)
    result = [
        _line(
            "ladder",
            f"loss of {ladder.tokens:,} validation tokens after counting {ladder.train_tokens:,} training tokens",
        ),
        _line("", f"{'':9}{'nats a token':>12}{'bits a byte':>13}"),
    ]
    for name, nats in ladder.rungs():
        result.append(_line("", f"{name:9}{nats:12.3f}{ladder.bits_per_byte(nats):13.3f}   {RUNGS[name]}"))
    return result


def _line(label: str, text: str) -> str:
    return textwrap.fill(
        f"{label:{LABEL_WIDTH}}{text}",
        WIDTH,
        subsequent_indent=" " * LABEL_WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _listing(shares: Mapping[str, float]) -> str:
    """Shares in per cent; the ones that would round to nothing are only named."""
    large = [f"{name} {_percent(share)}" for name, share in shares.items() if share >= TRACE]
    traces = [name for name, share in shares.items() if share < TRACE]
    return ", ".join(large) + (f", traces of {', '.join(traces)}" if traces else "")


def _percent(share: float) -> str:
    return "under 0.1 %" if 0 < share < TRACE else f"{100 * share:.1f} %"


def _quote(text: str) -> str:
    """The start of a text on one line; control characters, which a terminal might obey, become spaces."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= EXAMPLE_CHARACTERS else plain[:EXAMPLE_CHARACTERS] + "..."
