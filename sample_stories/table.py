"""Sentence kinds: wordings (wordings.txt) that can be written and be recognised, each tied to an action on the world.

A wording is text with slots and choices. `{a}` is a slot: its letter says what fills it (see `LETTERS`), a form after a
colon says how it is written: `{t:一}` is 一把伞 where `{t}` is 伞, `{a:他}` is the pronoun for the person in `{a}`.
`[很快|]` is a free choice that means nothing. The same wording renders a story and compiles to the regular expression
that reads it back, so the generator and the checker cannot drift apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
        return lex.pronoun(value)
    if form == "你":
        return lex.address(value)
    if form in ("一", "那", "这"):
        measure = lex.DISHES[value].measure if letter == "d" else lex.MEASURES[value]
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
                value = text[2:] if form else text  # a measure word is one character
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
            world.mentions.update(name for name in used if name not in lex.HOMES)  # a home belongs to somebody known
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


class Relation(NamedTuple):
    """What words must have to do with each other, and the reason against it otherwise."""

    holds: Callable[[Values], bool]
    otherwise: str


SOLD_THERE = Relation(lambda v: lex.SOLD_AT.get(v["t"]) == v["p"], "{p} does not sell {t}")


@dataclass(frozen=True)
class Event:
    """A kind of sentence that moves a plot from one of its stages to the next; without a stage it opens the plot.

    Letters stand for what fills them, in the sentence or else in the plot; several pieces have spaces between them. An
    event enters itself into the table. As a decorator it takes a function that is carried out on top.
    """

    name: str
    goals: str
    stages: str
    then: str = ""
    about: str | None = None  # what the sentence says of these must be the plot's or new to it; None: of all its slots
    only: Values = field(default_factory=dict)  # letters and the only values that they may have
    fits: Relation | None = None
    here: str = ""  # people who must be at one place, the first of them acting
    at: str = ""  # the place where they must be
    home: str = ""  # the person in whose home they must be
    weather: Sequence[str] = ()
    knows: str = ""  # somebody who is spoken of and not here
    enters: str = ""  # somebody who appears where the plot's a is
    appears: str = ""  # "tb": the thing t comes into the story, in the hands of b
    gives: str = ""  # "bat": b gives a the thing t
    has: str = ""  # "at": a must have the thing t
    toward: str = ""  # the way leads to this place, or to the home of this person
    asks: str = ""  # the question that the next sentence must answer
    answers: tuple[str, ...] = ()
    ends: bool = False
    rules: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        kind(self.name, answers=self.answers)(self.happen)

    def __call__(self, rule: Action) -> Action:
        """Carry out this function too, as a decorator."""
        self.rules.append(rule)
        return rule

    def happen(self, world: World, values: Values) -> None:
        """Change the world, or raise `Broken`."""
        said = {letter: value for letter, value in values.items() if self.about is None or letter in self.about}
        if self.stages:
            world.step(self.goals, self.stages, self.then, said)
        else:
            world.start(self.goals, self.then, said)
        roles = world.facts | values
        for letter, value in self.only.items():
            world.need(roles.get(letter) == value, f"{roles.get(letter)} does not fit: it takes {value}")
        if self.fits:
            world.need(self.fits.holds(roles), self.fits.otherwise.format(**roles))
        self._people(world, roles)
        for thing, person in self.appears.split():
            world.appear(roles[thing], roles[person])
        for giver, taker, thing in self.gives.split():
            world.give(roles[giver], roles[taker], roles[thing])
        for person, thing in self.has.split():
            world.has(roles[person], roles[thing])
        if self.toward:
            goal = roles[self.toward]
            world.heading = lex.home(goal) if goal in lex.PEOPLE else goal
            world.need(values.get("p", world.heading) == world.heading, f"the way leads to {world.heading}")
        world.question = self.asks
        for rule in self.rules:
            rule(world, values)
        if self.ends:
            world.close(self.goals)

    def _people(self, world: World, roles: Values) -> None:
        if self.here:
            place = world.present(*(roles[letter] for letter in self.here))
            for wanted in [*(roles[letter] for letter in self.at), *(lex.home(roles[letter]) for letter in self.home)]:
                world.need(place == wanted, f"{world.actor} is at {place}, not at {wanted}")
        world.need(not self.weather or world.weather in self.weather, f"nobody does that in {world.weather}")
        for person in (roles[letter] for letter in self.knows if letter in roles):
            world.need(person not in world.at, f"{person} is here already")
            world.known.add(person)
        for letter in self.enters:
            world.introduce(roles[letter], world.at[roles["a"]])


def readings(sentence: str) -> Iterator[tuple[Kind, Values]]:
    """Yield every way to understand a sentence."""
    for entry in KINDS.values():
        for wording in entry.wordings:
            values = wording.read(sentence)
            if values is not None:
                yield entry, values
