"""Questions about a story, and a judge that knows the answers: both read them off the little world.

A story is broken off somewhere and asked about as it stands there: who has a thing, where it or somebody is, who came,
why. Some questions are about what the story does not have; the right answer is then that it does not say. An answer is
right if it names what is so in the world, in whatever words, and nothing else of that kind.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.files import replace_bytes
from sample_stories import lexicon as lex
from sample_stories.generator import draw_story
from sample_stories.world import World

UNSAID_SHARE = 0.2  # of the questions
FEWEST_SENTENCES = 3
MOST = 12  # questions about a story
_REFUSALS = ("没有说", "没说", "不知道")
_UNSAID = ("故事里没有说。", "没有说。")
_PEOPLE, _PLACES, _TREES = tuple(lex.PEOPLE), (*lex.PLACES, *lex.HOMES), tuple(lex.TREES)
_THINGS = tuple(dict.fromkeys([*lex.BELONGINGS, *lex.TOYS, *lex.PLANTING, "伞"]))


@dataclass(frozen=True)
class Question:
    """What is asked; `kind` is has, where, came, why or unsaid.

    `truth` is the name that an answer has to give, empty if the story does not say; `names` are all names of its sort,
    `given` those that the question names itself. `answers` are ways to say it.
    """

    kind: str
    text: str
    truth: str
    names: tuple[str, ...]
    answers: tuple[str, ...]
    given: tuple[str, ...] = ()

    def is_right(self, answer: str) -> bool:
        """Return whether an answer says what is so."""
        found = named(answer, self.names) - set(self.given)
        refuses = any(word in answer for word in _REFUSALS)
        return found == {self.truth} and not refuses if self.truth else refuses and not found

    def chance(self, story: str) -> float:
        """Return the chance of a guess among the fitting names of the story and "it does not say"."""
        return 1 / (len(named(story, self.names) - set(self.given)) + 1)


@dataclass
class Asked:
    """The beginning of a story and the questions about it."""

    story: str
    questions: list[Question] = field(default_factory=list)

    def prompt(self, number: int = 0) -> str:
        """Return what a question is put as when it is the first of a conversation."""
        return f"{self.story}\n{self.questions[number].text}"


def named(text: str, names: Sequence[str]) -> set[str]:
    """Return which of the names stand in a text, the longest at each place."""
    found: set[str] = set()
    for name in sorted(names, key=len, reverse=True):
        if name in text:
            found.add(name)
            text = text.replace(name, "□")
    return found


def ask(count: int, seed: int, *, hamlet: bool = False) -> Iterator[Asked]:
    """Yield `count` different stories, each broken off between two sentences, with up to MOST questions."""
    rng, seen = random.Random(f"questions {seed}"), set()
    while len(seen) < count:
        teller = draw_story(rng, hamlet, keep_worlds=True)
        if teller is None or teller.worlds is None or teller.story in seen:
            continue
        lines, worlds = teller.lines, teller.worlds
        told = FEWEST_SENTENCES + int(rng.random() * (len(lines) - FEWEST_SENTENCES + 1))
        text = "".join(lines[:told])
        questions = _choose(list(_said(worlds[told - 1])), list(_unsaid(worlds[told - 1], text, rng)), rng)
        if questions:
            seen.add(teller.story)
            yield Asked(text, questions)


def _choose(said: list[Question], unsaid: list[Question], rng: random.Random) -> list[Question]:
    """Return up to MOST of the questions in random order, about one in five of them without an answer."""
    chosen: list[Question] = []
    pools = [sorted(pool, key=lambda _: rng.random()) for pool in (said, unsaid)]
    while len(chosen) < MOST and any(pools):
        pool = pools[rng.random() < UNSAID_SHARE]
        if pool:
            chosen.append(pool.pop())
        elif not pools[0]:
            break
    return chosen


def _said(world: World) -> Iterator[Question]:
    """Yield what can be asked about a world as it stands."""
    facts, goal = world.facts, world.goal
    a, b, place = facts.get("a", ""), facts.get("b", ""), facts.get("p", "")
    for thing, person in world.holder.items():
        if thing in _THINGS:
            yield Question("has", f"{thing}在谁手里？", person, _PEOPLE, (f"在{person}手里。", f"{person}。"))
    for thing, (where, _) in world.lying.items():
        if where:
            yield Question("where", f"{thing}在哪里？", where, _PLACES, (f"在{where}。",))
    for person, where in world.at.items():
        if where in _PLACES:
            yield Question(
                "where", f"{person}在哪里？", where, _PLACES, (f"在{where}。", f"{person}在{where}。"), (person,)
            )
    if goal == "umbrella" and b:
        yield Question("came", f"谁想到{a}没带伞？", b, _PEOPLE, (f"{b}。",), (a,))
        if "伞" in world.holder:
            yield Question("why", f"{b}为什么去{place}？", a, _PEOPLE, (f"去接{a}。", f"因为要接{a}。"), (b,))
    if goal == "plant" and b:
        yield Question("came", f"谁来帮{a}种树？", b, _PEOPLE, (f"{b}。", f"{b}来帮忙。"), (a,))
        tree = facts["v"]
        yield Question("why", f"{b}为什么来找{a}？", tree, _TREES, (f"一起种{tree}。", f"来种{tree}。"))
    if goal == "lost" and place and world.at.get(a) == place:
        thing = facts["t"]
        yield Question("why", f"{a}为什么去{place}？", thing, _THINGS, (f"去找{thing}。", f"因为{thing}丢了。"))
    if goal == "swap" and world.stage == "swapped":
        thing = facts["u"]
        yield Question("why", f"{a}手里为什么有{thing}？", b, _PEOPLE, (f"和{b}换的。", f"跟{b}换着玩。"), (a,))


def _unsaid(world: World, text: str, rng: random.Random) -> Iterator[Question]:
    """Yield questions that the story does not answer."""
    person = _absent(_PEOPLE, text, rng)
    yield Question("unsaid", f"{person}在哪里？", "", _PLACES, _UNSAID, (person,))
    thing = _absent(_THINGS, text, rng)
    yield Question("unsaid", f"{thing}在谁手里？", "", _PEOPLE, _UNSAID)
    if world.goal not in ("umbrella", "plant"):
        yield Question("unsaid", f"谁来帮{world.actor}种树？", "", _PEOPLE, _UNSAID, (world.actor,))


def _absent(names: Sequence[str], text: str, rng: random.Random) -> str:
    others = [name for name in names if name not in text]
    return others[int(rng.random() * len(others))]


def write_questions(path: Path, count: int, seed: int, *, hamlet: bool = False) -> None:
    """Write conversations about `count` stories as JSON Lines of messages: the story once, then its questions."""
    rng = random.Random(f"wordings {seed}")
    lines = (_conversation(asked, rng) for asked in ask(count, seed, hamlet=hamlet))
    replace_bytes(path, (json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))


def _conversation(asked: Asked, rng: random.Random) -> dict[str, list[dict[str, str]]]:
    messages = []
    for number, question in enumerate(asked.questions):
        put = question.text if number else asked.prompt()
        answer = question.answers[int(rng.random() * len(question.answers))]
        messages += [{"role": "user", "content": put}, {"role": "assistant", "content": answer}]
    return {"messages": messages}
