"""Sentences that any plot may use: openings, walking, weather, time, scenery, meeting somebody on the way."""

from __future__ import annotations

from functools import partial

from sample_stories import lexicon as lex
from sample_stories.table import SOLD_THERE, Event, Values, kind
from sample_stories.world import World

# --- openings: somebody is somewhere, doing something; the sky may come first, in a sentence of its own


@kind("open_sky", opening=True)
def _sky(world: World, v: Values) -> None:
    world.later(v["w"])
    world.need(v["w"] in lex.TIMES[:4], "a story begins by day")
    world.weather = lex.SKY_OF[v["k"]]


def _first_person(world: World, v: Values, place: str) -> None:
    world.need(not world.at, "the story already has somebody")
    if "k" in v:
        _sky(world, v)
    world.introduce(v["a"], place)
    world.present(v["a"])
    world.doing(v["x"], place)


@kind("open_at", opening=True)
@kind("first_at")
def _first_at(world: World, v: Values) -> None:
    world.need(v["p"] not in lex.HOMES, "one is simply 在家里 at home")
    _first_person(world, v, v["p"])


@kind("open_home", opening=True)
@kind("first_home")
def _first_home(world: World, v: Values) -> None:
    _first_person(world, v, lex.home(v["a"]))


@kind("open_pair", opening=True)
def _first_pair(world: World, v: Values) -> None:
    _first_person(world, v, v["p"])
    world.introduce(v["b"], v["p"])
    _not_a_strangers_home(world, v["b"], v["p"])


def _not_a_strangers_home(world: World, person: str, place: str) -> None:
    owner = lex.HOMES.get(place)
    world.need(owner in (None, person), f"{place} is the home of {owner}, not of {person}")


# --- walking, and whom one meets there


@kind("go", most=5)
def _go(world: World, v: Values) -> None:
    world.need((v["a"], v["p"]) not in world.been, f"{v['a']} was at {v['p']} before and would go back (回)")
    world.move(v["a"], v["p"])


@kind("go_out", most=2)
def _go_out(world: World, v: Values) -> None:
    world.need(lex.indoors(world.present(v["a"])), f"{v['a']} is not behind a door")
    left = world.heading and (world.counts["way_ask"] or world.goal == "plan")
    world.need(not left, f"{v['a']} has left the house already")
    _go(world, v)


@kind("go_see", most=3)
def _go_and_see(world: World, v: Values) -> None:
    _go(world, v)
    _meet(world, v, v["p"])


@kind("see", most=3)
def _see(world: World, v: Values) -> None:
    _meet(world, v, world.present(v.get("a", world.actor)))


def _meet(world: World, v: Values, place: str) -> None:
    _not_a_strangers_home(world, v["b"], place)
    world.introduce(v["b"], place)
    world.doing(v["x"], place)
    ill = world.facts.get("r") == "病了" and world.facts.get("b") == v["b"]
    world.need((v["x"] in lex.ILL_ACTS) == ill, f"{v['x']} does not fit {v['b']}")


@kind("back", most=3)
@kind("back_time")
def _back(world: World, v: Values) -> None:
    if "w" in v:
        world.later(v["w"])
    world.need((v["a"], v["p"]) in world.been, f"{v['a']} never was at {v['p']}")
    world.need(v["p"] != lex.home(v["a"]), "one goes back 回家 to one's own home")
    world.move(v["a"], v["p"])


@kind("home", most=2)
def _go_home(world: World, v: Values) -> None:
    world.need(world.facts.get("a") == v["a"], f"{v['a']} has no reason to go home now")
    world.move(v["a"], lex.home(v["a"]))


@kind("time")
def _time_passes(world: World, v: Values) -> None:
    world.need(bool(world.goal), "time passes before anything has begun")
    world.later(v["w"])


@kind("scene", most=2)
def _scene(world: World, v: Values) -> None:
    place = world.present(world.actor)
    world.need(lex.SCENES[v["g"]] == place, f"“{v['g']}” is not seen at {place}")
    world.need(v["g"] not in world.scenes, "the same view twice")
    world.dry(place)
    world.scenes.add(v["g"])


@kind("arrive_scene", most=2)
def _arrive_at_a_scene(world: World, v: Values) -> None:
    _go(world, v)
    _scene(world, v)


# --- rain and snow


def _dress(world: World, v: Values, weather: str) -> None:
    world.present(v["a"])
    world.need(world.weather == weather, f"nobody dresses for {weather} in {world.weather}")
    world.need(v["a"] not in world.geared, f"{v['a']} is already dressed for it")
    world.geared.add(v["a"])


kind("gear_rain", most=2)(partial(_dress, weather="雨"))
kind("gear_snow", most=2)(partial(_dress, weather="雪"))


@kind("rain")
def _rain(world: World, v: Values) -> None:
    world.need(world.weather in lex.FAIR, f"rain begins in {world.weather}")
    world.need(bool(world.goal), "it rains before anything has begun")
    world.weather = "雨"


@kind("shelter")
def _shelter(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == v["p"], f"{v['a']} is not at {v['p']}")
    world.need(world.weather == "雨", "one does not shelter when it is dry")
    world.need(v["a"] not in world.geared, f"{v['a']} has something against the rain")
    world.need(lex.indoors(v["p"]) and v["p"] != lex.home(v["a"]), f"{v['p']} is no shelter for {v['a']}")


@kind("rain_stops")
def _rain_stops(world: World, v: Values) -> None:
    world.need(world.weather == "雨", "rain stops that never fell")
    world.need(world.counts["rain"] == 0 or world.counts["shelter"] > 0, "rain that changes nothing")
    world.weather = "晴"
    world.geared.clear()


# --- on the way: c asks a where they are going, a says it, c says goodbye


@kind("way_ask")
def _asked_on_the_way(world: World, v: Values) -> None:
    world.present(v["a"])
    world.need(v["c"] not in world.at, f"{v['c']} cannot be on the road, but is at {world.at.get(v['c'])}")
    world.need(world.weather in lex.FAIR, "nobody stops to chat in the rain")
    world.need(world.facts.get("a") == v["a"], f"{v['a']} has no reason to be on the road")
    world.at[v["c"]] = "路上"
    world.facts["asker"] = v["c"]
    world.actor = v["c"]
    world.question = "way"


Event("way_buy", "errand cook", "buying", about="at", fits=SOLD_THERE, toward="p", answers=("way",), asks="way_bye")
Event("way_work", "lend", "lent", toward="p", answers=("way",), asks="way_bye")
Event("way_gift", "gift", "ready", about="abt", toward="b", answers=("way",), asks="way_bye")
Event("way_message", "message", "carrying", about="abc", toward="c", answers=("way",), asks="way_bye")


@kind("way_bye", answers=("way_bye",))
def _goodbye_on_the_way(world: World, v: Values) -> None:
    world.need(world.facts["asker"] == v["c"], f"{v['c']} is not the one who asked")
