"""What is true at one moment of a story, and the few rules that hold for every sentence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sample_stories import lexicon as lex

FOREIGN = "this belongs to the plot"  # how the reason begins when a sentence is about something else


class Broken(Exception):
    """A sentence that cannot happen in the world as it stands."""


@dataclass
class World:
    """The state that sentences read and change.

    `at` holds where each introduced person is; somebody only spoken of is in `known` but not yet in `at`.
    `holder` and `lying` hold where each thing is: with a person, or at a (place, spot). `goal` names the plot, `stage`
    how far it has come, `facts` what it is about. `mentions` counts the names in sentences: whatever enters a story
    must come back in it. `question` is the kind of question that waits for its answer.
    """

    at: dict[str, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    holder: dict[str, str] = field(default_factory=dict)
    lying: dict[str, tuple[str, str]] = field(default_factory=dict)
    been: set[tuple[str, str]] = field(default_factory=set)
    geared: set[str] = field(default_factory=set)
    scenes: set[str] = field(default_factory=set)
    anchored: set[str] = field(default_factory=set)
    weather: str = ""
    hour: int = -1
    goal: str = ""
    stage: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    question: str = ""
    heading: str = ""
    actor: str = ""
    over: bool = False
    said: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    mentions: Counter[str] = field(default_factory=Counter)

    def copy(self) -> World:
        """Return an independent copy, for trying one of several readings."""
        fields = {name: value.copy() if hasattr(value, "copy") else value for name, value in vars(self).items()}
        return World(**fields)

    def need(self, condition: bool, reason: str) -> None:
        """Raise `Broken` unless the condition holds."""
        if not condition:
            raise Broken(reason)

    def begin(self, name: str, sentence: str, opening: bool, most: int, answers: tuple[str, ...]) -> None:
        """The rules for any sentence: a beginning, no repetition, questions answered at once, nothing after the end."""
        self.need(not self.over, "the story goes on after its ending")
        self.need(sentence not in self.said, f"repeats sentence {self.said.get(sentence)}")
        self.need(opening == (not self.said), "a story must begin with one opening sentence, and only there")
        if self.question:
            self.need(self.question in answers, f"the question before it ({self.question}) gets no fitting answer")
        self.need(bool(self.question) or not answers, "answers a question that nobody asked")
        self.need(self.counts[name] < most, f"a second '{name}' makes no sense here")
        self.question = ""
        self.counts[name] += 1
        self.said[sentence] = len(self.said) + 1

    # people and places

    def introduce(self, person: str, place: str) -> None:
        """A person enters the story at a place."""
        self.need(person not in self.at, f"{person} is introduced twice")
        self.at[person] = place
        self.known.add(person)
        self.been.add((person, place))

    def present(self, *people: str) -> str:
        """All of them must be in the story and at one place, which is returned; the first is the one who acts."""
        for person in people:
            self.need(person in self.at, f"{person} acts before being introduced")
        first = people[0]
        for person in people[1:]:
            self.need(
                self.at[person] == self.at[first],
                f"{first} is at {self.at[first]} but {person} is at {self.at[person]}",
            )
        self.actor = first
        return self.at[first]

    def move(self, person: str, place: str) -> None:
        """Walk somewhere: not where one is already, not unprotected through rain or snow."""
        here = self.present(person)
        self.need(here != place, f"{person} is already at {place}")
        self.need(not self.heading or self.heading == place, f"{person} said {self.heading} but goes to {place}")
        self.need(
            self.weather in lex.FAIR or person in self.geared, f"{person} goes out in {self.weather} without protection"
        )
        owner = lex.HOMES.get(place)
        self.need(owner is None or owner in self.known, f"{owner} of {place} is unknown")
        self.heading = ""
        self.at[person] = place
        self.been.add((person, place))

    def doing(self, act: str, place: str) -> None:
        """The act must suit the place and the weather."""
        fits = act in lex.acts_at(place) or (place in lex.HOMES and act in lex.ILL_ACTS)
        self.need(fits, f"nobody does {act} at {place}")
        self.dry(place)
        self.anchored.add(place)

    def dry(self, place: str) -> None:
        """Work in the open needs fair weather."""
        self.need(lex.indoors(place) or self.weather in lex.FAIR, f"{place} is outdoors in {self.weather}")

    # things

    def appear(self, thing: str, holder: str) -> None:
        """A thing enters the story in somebody's hands."""
        self.need(thing not in self.holder and thing not in self.lying, f"{thing} is already somewhere else")
        self.holder[thing] = holder

    def has(self, person: str, thing: str) -> None:
        """The person must have the thing."""
        self.need(self.holder.get(thing) == person, f"{person} does not have {thing}")

    def give(self, giver: str, taker: str, thing: str) -> None:
        """Hand a thing over: the giver has it and both are at one place."""
        self.present(giver, taker)
        self.has(giver, thing)
        self.holder[thing] = taker

    # time and plot

    def later(self, time: str) -> None:
        """Time of day only moves forward."""
        self.need(lex.TIMES.index(time) > self.hour, f"{time} is not after {lex.TIMES[max(self.hour, 0)]}")
        self.hour = lex.TIMES.index(time)

    def start(self, goal: str, stage: str, facts: dict[str, str]) -> None:
        """Open the plot; a story has one."""
        self.need(not self.goal, f"a second plot ({goal}) begins inside {self.goal}")
        self.goal, self.stage, self.facts = goal, stage, dict(facts)

    def step(self, goals: str, stages: str, then: str, facts: dict[str, str]) -> None:
        """The plot must be one of `goals` at one of `stages`, and learns these facts; it moves to `then`."""
        self.need(self.goal in goals.split(), f"{FOREIGN} '{goals}', not to '{self.goal or 'none'}'")
        self.need(self.stage in stages.split(), f"comes at the wrong moment: the plot stands at '{self.stage}'")
        for name, value in facts.items():
            known = self.facts.setdefault(name, value)
            self.need(known == value, f"{value} does not fit: the story has {known}")
        self.stage = then or self.stage

    def close(self, goals: str) -> None:
        """An ending: the plot is done and nobody and nothing was named for no purpose."""
        self.step(goals, "done", "closed", {})
        self.need(not self.heading, "somebody set out and never arrived")
        for name, count in self.mentions.items():
            self.need(count > 1 or name in self.anchored, f"{name} is named once and never comes back")
        self.over = True
