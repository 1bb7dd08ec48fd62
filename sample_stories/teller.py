"""The teller of one story: chooses wordings, and lets the world veto what cannot be."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from sample_stories import kinds_common, kinds_plots  # noqa: F401  (they fill the table)
from sample_stories import lexicon as lex
from sample_stories.table import KINDS, Wording
from sample_stories.world import World

T = TypeVar("T")


class Teller:
    """Write one story, and offer the pieces that several plots share."""

    def __init__(self, rng: random.Random, people: Sequence[str], keep_worlds: bool = False) -> None:
        self.rng = rng
        self.world = World()
        self.worlds: list[World] | None = [] if keep_worlds else None  # after each sentence
        self.lines: list[str] = []
        self.used: set[Wording] = set()
        self.cast = self.shuffled(list(people))

    @property
    def story(self) -> str:
        """What has been told so far."""
        return "".join(self.lines)

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options; only `random()` is used, whose sequence Python keeps from version to version."""
        return options[int(self.rng.random() * len(options))]

    def shuffled(self, options: list[str]) -> list[str]:
        """Return the options in random order."""
        return [word for _, word in sorted((self.rng.random(), word) for word in options)]

    def maybe(self, chance: float) -> bool:
        """Return True with this probability."""
        return self.rng.random() < chance

    def person(self, among: list[str] | None = None) -> str:
        """Return somebody who is not yet in this story."""
        for name in self.cast:
            if among is None or name in among:
                self.cast.remove(name)
                return name
        raise AssertionError("a story needs fewer people than the village has")

    def say(self, name: str, **values: str) -> None:
        """Tell one event, with any wording that needs no more than these values."""
        entry = KINDS[name]
        fitting = [wording for wording in entry.wordings if wording.letters <= values.keys()]
        fresh = [wording for wording in fitting if wording not in self.used] or fitting
        wording = self.pick(fresh)
        self.used.add(wording)
        sentence = wording.render(values, self.pick)
        entry.apply(self.world, {letter: values[letter] for letter in sorted(wording.letters)}, sentence)
        self.lines.append(sentence)
        if self.worlds is not None:
            self.worlds.append(self.world.copy())

    def perhaps(self, chance: float, name: str, **values: str) -> None:
        """Tell an event with this probability."""
        if self.maybe(chance):
            self.say(name, **values)

    # pieces that several plots share

    def sky(self, *weathers: str) -> str:
        """Return a wording for one of these weathers."""
        return self.pick(lex.SKIES[self.pick(weathers)])

    def start(self, a: str, place: str = "", weathers: Sequence[str] = ("晴", "晴", "阴"), latest: int = 3) -> None:
        """Open with one person, at a place or at home."""
        time, sky = self.pick(lex.TIMES[: latest + 1]), self.sky(*weathers)
        act = self.pick(lex.acts_at(place or lex.home(a)))
        where = "at" if place else "home"
        if self.maybe(0.25):
            self.say("open_sky", w=time, k=sky)
            self.say(f"first_{where}", a=a, p=place, x=act)
        else:
            self.say(f"open_{where}", a=a, p=place, x=act, w=time, k=sky)

    def start_pair(self, a: str, b: str, place: str, weathers: Sequence[str] = ("晴", "晴", "阴")) -> None:
        """Open with two people at one place."""
        act, time, sky = self.pick(lex.acts_at(place)), self.pick(lex.TIMES[:4]), self.sky(*weathers)
        self.say("open_pair", a=a, b=b, p=place, x=act, w=time, k=sky)

    def dress(self, a: str) -> None:
        """Before going out in bad weather: wait until it is over, or put something on."""
        weather = self.world.weather
        if weather in lex.FAIR or a in self.world.geared:
            return
        if weather == "雨" and not self.world.counts["rain"] and self.maybe(0.3):
            self.say("rain_stops")
        else:
            self.say("gear_rain" if weather == "雨" else "gear_snow", a=a)

    def go(self, a: str, place: str, meet: Callable[[str], None] | None = None) -> None:
        """Walk to a new place, perhaps meeting somebody on the way (`meet` then tells the answer)."""
        self.dress(a)
        if meet and self.world.weather in lex.FAIR and self.maybe(0.2):
            asker = self.person()
            self.say("way_ask", a=a, c=asker)
            meet(asker)
            self.say("way_bye", c=asker)
        scenic = place in lex.PLACES and (lex.indoors(place) or self.world.weather in lex.FAIR)
        if scenic and self.maybe(0.2):
            self.say("arrive_scene", a=a, p=place, g=self.pick(lex.PLACES[place].scenes))
        elif lex.indoors(self.world.at[a]) and not self.world.heading and self.maybe(0.3):
            self.say("go_out", a=a, p=place)
        else:
            self.say("go", a=a, p=place)
        if scenic and not self.world.scenes:
            self.look_around(place, 0.12)

    def look_around(self, place: str, chance: float) -> None:
        """Perhaps say what one sees there."""
        if self.maybe(chance):
            self.say("scene", g=self.pick(lex.PLACES[place].scenes))

    def call_on(self, a: str, b: str, place: str, acts: list[str], meet: Callable[[str], None] | None = None) -> None:
        """Walk to where somebody is and see what they are doing."""
        act = self.pick(acts)
        if self.maybe(0.55):
            self.dress(a)
            self.say("go_see", a=a, b=b, p=place, x=act)
        else:
            self.go(a, place, meet)
            self.say("see", a=a, b=b, x=act)

    def shower(self, a: str, chance: float = 0.2) -> None:
        """Perhaps rain falls and a waits under a roof until it is over."""
        place = self.world.at[a]
        if self.world.weather in lex.FAIR and lex.indoors(place) and place != lex.home(a) and self.maybe(chance):
            self.say("rain")
            self.say("shelter", a=a, p=place)
            self.say("rain_stops")

    def back(self, a: str, place: str) -> None:
        """Return, perhaps with the hour."""
        self.dress(a)
        later = lex.TIMES[self.world.hour + 1 :]
        if later and self.maybe(0.3):
            self.say("back_time", a=a, p=place, w=later[0])
        else:
            self.say("back", a=a, p=place)
