"""Read a text sentence by sentence, let each one happen in a simulated world, and say where it breaks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sample_stories import kinds_common, kinds_plots  # noqa: F401  (they fill the table)
from sample_stories.table import readings
from sample_stories.world import FOREIGN, Broken, World

SHORTEST, LONGEST = 80, 400
UNFINISHED = "stops before an ending sentence"
# A quotation after a colon closes its sentence; one that opens a sentence runs on to the full stop.
SENTENCE = re.compile(r"(?:“[^“”]*”[^。！？“”：]*[。！？])|(?:[^。！？“”]*：“[^“”]*”)|(?:[^。！？“”]+[。！？])")


@dataclass(frozen=True)
class Verdict:
    """Whether a text is a well-formed and consistent story; if not, why, and at which sentence (from 1)."""

    ok: bool
    reason: str = ""
    sentence: int | None = None


def split_sentences(text: str) -> list[str] | None:
    """Return the sentences of a text, or None if something remains that is no sentence."""
    sentences, end = [], 0
    while end < len(text):
        match = SENTENCE.match(text, end)
        if match is None:
            return None
        sentences.append(match.group())
        end = match.end()
    return sentences


def check(text: str) -> Verdict:
    """Decide whether a text is a story of the little world, told without contradiction from opening to ending."""
    sentences = split_sentences(text)
    if sentences is None:
        complete = [match.group() for match in SENTENCE.finditer(text)]
        verdict = _follow(complete)
        if not verdict.ok and verdict.reason != UNFINISHED and verdict.sentence is not None:
            return verdict
        return Verdict(False, f"does not end with a complete sentence: …{text[-12:]}", len(complete) + 1)
    verdict = _follow(sentences)
    if verdict.ok and not SHORTEST <= len(text) <= LONGEST:
        return Verdict(False, f"has {len(text)} characters, not {SHORTEST} to {LONGEST}")
    return verdict


def _follow(sentences: list[str]) -> Verdict:
    """Play the sentences; several readings of one sentence are followed side by side."""
    worlds = [World()]
    for number, sentence in enumerate(sentences, 1):
        following, reason, nearness = [], f"matches no pattern: {sentence}", -1
        for kind, values in readings(sentence):
            for world in worlds:
                trial = world.copy()
                try:
                    kind.apply(trial, values, sentence)
                except Broken as broken:
                    # a reading that belongs to another plot explains less than one that fits this plot
                    if (near := int(not str(broken).startswith(FOREIGN))) > nearness:
                        reason, nearness = f"{broken}: {sentence}", near
                else:
                    following.append(trial)
        if not following:
            return Verdict(False, reason, number)
        worlds = following[:8]
    if any(world.over for world in worlds):
        return Verdict(True)
    return Verdict(False, UNFINISHED, len(sentences) or None)
