"""Minimal pairs from held-out text without labels: a true passage beside a copy with one thing wrong.

A pair counts 1 if the model finds the true passage more likely, 1/2 for a tie. Chance is 50 % by construction: both
sides have as many tokens, so that a model without knowledge finds them equal; and but for `repeated_clause` both sides
have the very same tokens in another order, so that one that knows only how frequent tokens are does, too.

| kind | what is wrong |
|---|---|
| swapped_characters | two neighbouring Chinese characters have changed places |
| repeated_clause | instead of going on, the text says the last clause again |
| measure_word | two sentences have exchanged their measure words (一个 / 一条) |
| exchanged_name | two names (words that recur in a document) have changed places at one of their later mentions |
| reversed_order | the sentences of a passage stand in reverse order |
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice, pairwise

import numpy as np

from evaluation.token_losses import Logits, token_losses

KINDS = ("swapped_characters", "repeated_clause", "measure_word", "exchanged_name", "reversed_order")
PAIRS = 100  # of each kind
A_DOCUMENT = 3  # pairs of one kind from one document at most: more would be alike
PASSAGE = 160  # characters of a passage: what a row of the smallest models holds
SENTENCE = (8, 60)  # characters
TIE = 1e-4  # nats; the order of a sum moves less
Z = 1.96  # of a 95 % interval

_SENTENCE = re.compile(r"[^。！？!?\n]+[。！？!?]?")
_CLAUSE = re.compile(r"[^，；：。！？,;\n]{5,30}[，；：。！？,;]")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_MEASURES = "个只条张本位名座把辆件家头匹棵种次篇部首间群块台支颗架双份幅层片句段艘杯道项场组册卷章节行列步"
_MEASURED = re.compile(f"(?<=[一二两三四五六七八九十几这那每数])[{_MEASURES}](?=[\u4e00-\u9fff])")
_SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎"
    "余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文"
)
_NAME = re.compile(f"(?<![\\w/.:])[A-Za-z_][A-Za-z_.]{{2,}}(?![\\w/:])|[{_SURNAMES}][\u4e00-\u9fff]")

Encode = Callable[[Sequence[str]], list[list[int]]]
Sides = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Pair:
    """Token ids, behind a BOS (or an EOS), of the passages that are true and of those that are not."""

    kind: str
    true: list[np.ndarray]
    false: list[np.ndarray]


@dataclass(frozen=True)
class PairResult:
    """The share of `pairs` in which the true side was likelier, with a 95 % confidence interval (Wilson's)."""

    pairs: int
    share: float
    low: float
    high: float


def make_pairs(
    documents: Sequence[str], encode: Encode, start_id: int | None, *, count: int = PAIRS, longest: int = 512
) -> list[Pair]:
    """Return at most `count` pairs of each kind, always the same for the same documents and tokenizer.

    `longest` is how many tokens of a passage the model can take.
    """

    def fair(kind: str, candidates: Iterator[Sides]) -> Iterator[Pair]:
        made = (_fair(kind, true, false, encode, start_id, longest) for true, false in candidates)
        return (pair for pair in made if pair)

    pairs: list[Pair] = []
    for kind, candidates in OF_A_DOCUMENT.items():
        of_each = (
            islice(fair(kind, candidates(document, random.Random(number))), A_DOCUMENT)
            for number, document in enumerate(documents)
        )
        pairs += islice(chain.from_iterable(of_each), count)
    return [*pairs, *islice(fair("measure_word", _exchanged_measure_words(documents)), count)]


def _fair(
    kind: str, true: list[str], false: list[str], encode: Encode, start_id: int | None, longest: int
) -> Pair | None:
    """Return the pair if its sides have the same tokens; a repeated clause is cut to as many as the true side has."""
    ids = encode([*true, *false])
    sides = ids[: len(true)], ids[len(true) :]
    if kind == "repeated_clause":
        shorter = min(len(sides[0][0]), len(sides[1][0]))
        sides = [sides[0][0][:shorter]], [sides[1][0][:shorter]]
    elif sorted(token for part in sides[0] for token in part) != sorted(token for part in sides[1] for token in part):
        return None
    if sides[0] == sides[1] or max(map(len, [*sides[0], *sides[1]])) >= longest:
        return None
    start = [] if start_id is None else [start_id]
    arrays = [[np.array([*start, *part], dtype=np.int64) for part in side] for side in sides]
    return Pair(kind, arrays[0], arrays[1])


def measure_pairs(pairs: Sequence[Pair], logits: Logits, vocab_size: int) -> dict[str, PairResult]:
    """Return the result of each kind that has pairs, and of "all" together.

    FloatingPointError if the model's output is not finite.
    """
    passages = [passage for pair in pairs for side in (pair.true, pair.false) for passage in side]
    sums = iter([float(nats.sum()) for nats in token_losses(logits, passages, vocab_size)])
    points: dict[str, list[float]] = {}
    for pair in pairs:
        true, false = (sum(next(sums) for _ in side) for side in (pair.true, pair.false))
        point = 0.5 if abs(true - false) <= TIE else float(true < false)
        for kind in (pair.kind, "all"):
            points.setdefault(kind, []).append(point)
    return {kind: _result(points[kind]) for kind in (*KINDS, "all") if kind in points}


def _result(points: Sequence[float]) -> PairResult:
    n, share = len(points), sum(points) / len(points)
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return PairResult(n, share, max(0.0, centre - half), min(1.0, centre + half))


# --- the kinds --------------------------------------------------------------------------------------------------------


def _sentences(document: str) -> list[str]:
    return [match.group() for match in _SENTENCE.finditer(document)]


def _plain_sentences(document: str) -> list[str]:
    return [s.strip() for s in _sentences(document) if SENTENCE[0] <= len(s.strip()) <= SENTENCE[1]]


def _swapped(document: str, draw: random.Random) -> Iterator[Sides]:
    """Yield sentences with two neighbouring characters swapped, at several places: not every one keeps its tokens."""
    sentences = _plain_sentences(document)
    draw.shuffle(sentences)
    for sentence in sentences[: 4 * A_DOCUMENT]:
        places = [
            k for k, (a, b) in enumerate(pairwise(sentence)) if a != b and _HAN.match(a) and _HAN.match(b) and k >= 2
        ]
        for k in draw.sample(places, min(3, len(places))):
            yield [sentence], [sentence[:k] + sentence[k + 1] + sentence[k] + sentence[k + 2 :]]


def _repeated_clauses(document: str, draw: random.Random) -> Iterator[Sides]:
    """Yield a passage that goes on after a clause, and one that says the clause again; both of one length."""
    clauses = [match.span() for match in _CLAUSE.finditer(document)]
    draw.shuffle(clauses)
    for start, end in clauses[: 2 * A_DOCUMENT]:
        clause, before = document[start:end], document[max(0, start - PASSAGE // 2) : start]
        after = document[end : end + len(clause)]
        if len(after) == len(clause) and after.strip() and after != clause and clause not in before:
            yield [before + clause + after], [before + clause + clause]


def _exchanged_names(document: str, draw: random.Random) -> Iterator[Sides]:
    """Yield a passage in which a later mention of a name and one of another have changed places."""
    passage = document[: 2 * PASSAGE]
    places: dict[str, list[int]] = {}
    for match in _NAME.finditer(passage):
        places.setdefault(match.group(), []).append(match.start())
    names = [name for name, found in places.items() if len(found) > 1]
    for a, b in draw.sample(list(combinations(names, 2)), min(2 * A_DOCUMENT, math.comb(len(names), 2))):
        (i, first), (j, second) = sorted([(places[a][-1], a), (places[b][-1], b)])
        if i + len(first) < j and first not in second and second not in first:
            end = j + len(second)
            yield [passage[:end]], [passage[:i] + second + passage[i + len(first) : j] + first]


def _reversed_order(document: str, draw: random.Random) -> Iterator[Sides]:
    """Yield passages of three to five sentences, beside the same in reverse order."""
    sentences = _sentences(document)
    starts = list(range(0, len(sentences) - 2, 3))
    draw.shuffle(starts)
    for start in starts[: 2 * A_DOCUMENT]:
        chosen: list[str] = []
        for sentence in sentences[start : start + 5]:
            if sum(map(len, chosen)) + len(sentence) <= PASSAGE:
                chosen.append(sentence)
        if len(chosen) >= 3 and all(sentence[-1] in "。！？!?" for sentence in chosen):
            yield ["".join(chosen)], ["".join(reversed(chosen))]


def _exchanged_measure_words(documents: Sequence[str]) -> Iterator[Sides]:
    """Yield pairs of sentences that exchange their measure words: each word is once right and once wrong."""
    waiting: dict[str, list[tuple[str, int]]] = {}
    for document in documents:
        for sentence in _plain_sentences(document)[: 4 * A_DOCUMENT]:
            if not (match := _MEASURED.search(sentence)):
                continue
            word, place = match.group(), match.start()
            other = next((o for o, found in waiting.items() if o != word and found), None)
            if other is None:
                waiting.setdefault(word, []).append((sentence, place))
                continue
            partner, there = waiting[other].pop()
            wrong = sentence[:place] + other + sentence[place + 1 :], partner[:there] + word + partner[there + 1 :]
            yield [sentence, partner], list(wrong)


OF_A_DOCUMENT = {
    "swapped_characters": _swapped,
    "exchanged_name": _exchanged_names,
    "reversed_order": _reversed_order,
    "repeated_clause": _repeated_clauses,
}
