"""Sentence kinds: wordings (wordings.txt) that can be written and be recognised, each tied to an action on the world.

A wording is text with slots and choices. `{a}` is a slot: its letter says what fills it (see `LETTERS`), a form after a
colon says how it is written: `{t:一}` is 一把伞 where `{t}` is 伞, `{a:他}` is the pronoun for the person in `{a}`.
`[很快|]` is a free choice that means nothing. The same wording renders a story and compiles to the regular expression
that reads it back, so the generator and the checker cannot drift apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sample_stories import lexicon as lex
from sample_stories.world import World

Values = dict[str, str]
Action = Callable[[World, Values], None]

PART = re.compile(r"\{(?P<letter>[a-z])(?::(?P<form>.))?\}|\[(?P<choice>[^\]]*)\]")
LETTERS: dict[str, list[str]] = {}
for _letters, _words in (
    ("abc", list(lex.PEOPLE)),
    ("tu", list(lex.MEASURES)),
    ("pq", [*lex.PLACES, *lex.HOMES]),
    ("w", lex.TIMES),
    ("n", lex.TOMORROW),
    ("k", list(lex.SKY_OF)),
    ("xo", lex.ACTS),
    ("s", lex.SPOTS),
    ("y", list(lex.WORKS)),
    ("z", list(lex.RESULTS)),
    ("r", lex.REASONS),
    ("d", list(lex.DISHES)),
    ("v", lex.TREES),
    ("g", list(lex.SCENES)),
):
    LETTERS.update(dict.fromkeys(_letters, _words))


def surface(letter: str, form: str, value: str) -> str:
    """Return a value as it is written in a form."""
    if form == "他":
        return lex.PEOPLE[value][0]
    if form == "你":
        return lex.PEOPLE[value][1]
    if form in ("一", "那", "这"):
        measure = lex.DISHES[value][0] if letter == "d" else lex.MEASURES[value]
        return form + measure + value
    return value


@dataclass(frozen=True)
class Wording:
    """One way to say a sentence of some kind."""

    parts: tuple[tuple[str, str, str], ...]  # ("text", text, ""), ("choice", "a|b", "") or ("slot", letter, form)
    regex: re.Pattern[str]
    letters: frozenset[str]
    landmark: str  # the longest fixed piece: a sentence without it cannot match, which is much cheaper to see

    @staticmethod
    def parse(text: str) -> Wording:
        """Read a wording as written in the table."""
        parts: list[tuple[str, str, str]] = []
        end = 0
        for match in PART.finditer(text):
            parts.append(("text", text[end : match.start()], ""))
            if match["letter"]:
                parts.append(("slot", match["letter"], match["form"] or ""))
            else:
                parts.append(("choice", match["choice"], ""))
            end = match.end()
        parts.append(("text", text[end:], ""))
        landmark = max((body for tag, body, _ in parts if tag == "text"), key=len)
        bare = {body for tag, body, form in parts if tag == "slot" and form not in ("他", "你")}
        letters = frozenset(body for tag, body, _ in parts if tag == "slot")
        assert letters == bare, f"a pronoun alone says not who: {text}"
        return Wording(tuple(parts), re.compile(_pattern(parts)), letters, landmark)

    def render(self, values: Values, pick: Callable[[list[str]], str]) -> str:
        """Return the sentence, free choices made by `pick`."""
        pieces = []
        for tag, body, form in self.parts:
            if tag == "slot":
                pieces.append(surface(body, form, values[body]))
            else:
                pieces.append(pick(body.split("|")) if tag == "choice" else body)
        return "".join(pieces)

    def read(self, sentence: str) -> Values | None:
        """Return the values of the slots if the sentence has this wording, pronouns and measure words included."""
        match = self.regex.fullmatch(sentence) if self.landmark in sentence else None
        if match is None:
            return None
        values: Values = {}
        for group, text in match.groupdict().items():
            letter, _, form = group.partition("_")
            if form in ("", "一", "那", "这"):
                value = text if not form else _BARE[letter][text[1:]]
                if values.setdefault(letter, value) != value:
                    return None
        for group, text in match.groupdict().items():
            letter, _, form = group.partition("_")
            if surface(letter, form, values[letter]) != text:
                return None
        return values


def _pattern(parts: list[tuple[str, str, str]]) -> str:
    pattern, seen = "", set()
    for tag, body, form in parts:
        if tag != "slot":
            pattern += re.escape(body) if tag == "text" else "(?:" + "|".join(map(re.escape, body.split("|"))) + ")"
            continue
        group = f"{body}_{form}" if form else body
        if group in seen:
            pattern += f"(?P={group})"
            continue
        seen.add(group)
        options = sorted({surface(body, form, word) for word in LETTERS[body]}, key=lambda word: (-len(word), word))
        pattern += f"(?P<{group}>{'|'.join(map(re.escape, options))})"
    return pattern


_BARE = {letter: {surface(letter, "一", word)[1:]: word for word in LETTERS[letter]} for letter in ("t", "u", "d")}


@dataclass(frozen=True)
class Kind:
    """A kind of sentence: its wordings and what it does to the world (raising `Broken` where that is impossible)."""

    name: str
    wordings: tuple[Wording, ...]
    action: Action
    opening: bool = False
    most: int = 1  # how often one story may use it
    answers: tuple[str, ...] = field(default=())  # the questions it replies to; such a kind never stands alone

    def apply(self, world: World, values: Values, sentence: str) -> None:
        """Let the sentence happen in the world, or raise `Broken`."""
        world.begin(self.name, sentence, self.opening, self.most, self.answers)
        for group in ("abc", "tu", "pq"):
            used = [values[letter] for letter in group if letter in values]
            world.need(len(set(used)) == len(used), f"one of {'、'.join(used)} is named in two roles at once")
            world.mention([name for name in used if name not in lex.HOMES])  # a home belongs to somebody known
        self.action(world, values)


def read_wordings(path: Path) -> dict[str, list[str]]:
    """Return the wordings of each kind of sentence: a name stands at the margin, its wordings are indented below it."""
    wordings: dict[str, list[str]] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            wordings[name].append(line.strip())
        elif line and not line.startswith("#"):
            wordings[name := line] = []
    return wordings


WORDINGS = read_wordings(Path(__file__).with_name("wordings.txt"))
KINDS: dict[str, Kind] = {}


def kind(
    name: str, *, opening: bool = False, most: int = 1, answers: tuple[str, ...] = ()
) -> Callable[[Action], Action]:
    """Enter the decorated action into the table under a name, with its wordings."""

    def enter(action: Action) -> Action:
        KINDS[name] = Kind(name, tuple(map(Wording.parse, WORDINGS[name])), action, opening, most, answers)
        return action

    return enter


def event(
    name: str,
    goal: str,
    stage: str,
    then: str = "",
    *,
    about: str | None = None,
    here: str = "",
    gives: str = "",
    has: str = "",
    asks: str = "",
    answers: tuple[str, ...] = (),
    ends: bool = False,
) -> None:
    """Enter a kind that moves a plot from one stage to the next and does no more than these arguments say.

    Letters stand for what fills them. The plot must be `about` these (all slots, unless named); the people `here` must
    be at one place, the first of them acting; of three letters the first `gives` the second the third; of two the
    first `has` the second. `asks` is the question that the next sentence must answer, and `ends` closes the story.
    """

    def action(world: World, v: Values) -> None:
        world.step(goal, stage, then, **{letter: v[letter] for letter in (v if about is None else about)})
        if here:
            world.present(*(v[letter] for letter in here))
        if gives:
            world.give(*(v[letter] for letter in gives))
        if has:
            world.has(*(v[letter] for letter in has))
        world.question = asks
        if ends:
            world.close(goal)

    kind(name, answers=answers)(action)


def readings(sentence: str) -> Iterator[tuple[Kind, Values]]:
    """Yield every way to understand a sentence."""
    for entry in KINDS.values():
        for wording in entry.wordings:
            values = wording.read(sentence)
            if values is not None:
                yield entry, values
