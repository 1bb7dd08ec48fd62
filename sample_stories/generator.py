"""Draw stories by a seed: the same on every platform and Python version."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from common.files import replace_bytes
from sample_stories import lexicon as lex
from sample_stories.checker import LONGEST, SHORTEST
from sample_stories.plots import HAMLET_PEOPLE, HAMLET_PLOTS, PLOTS
from sample_stories.teller import Teller
from sample_stories.world import Broken


def draw_story(rng: random.Random, hamlet: bool = False, keep_worlds: bool = False) -> Teller | None:
    """Return who told a story, or None where the events did not fit together or it came out too short or too long."""
    teller = Teller(rng, HAMLET_PEOPLE if hamlet else lex.PEOPLE, keep_worlds)
    plot = teller.pick(HAMLET_PLOTS if hamlet else PLOTS)
    try:
        plot(teller)
    except Broken:
        return None
    return teller if SHORTEST <= len(teller.story) <= LONGEST else None


def generate_stories(count: int = 20000, seed: int = 0, hamlet: bool = False) -> Iterator[str]:
    """Yield `count` distinct stories; the first n of a seed do not depend on the count.

    `hamlet` keeps to half of the people and a third of the plots.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < count:
        teller = draw_story(rng, hamlet)
        if teller and teller.story not in seen:
            seen.add(teller.story)
            yield teller.story


def write_sample_corpus(path: Path, count: int = 20000, seed: int = 0, hamlet: bool = False) -> None:
    """Write the stories as JSON Lines of {"text": ...}; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stories = generate_stories(count, seed, hamlet)
    replace_bytes(path, (json.dumps({"text": story}, ensure_ascii=False).encode() + b"\n" for story in stories))
