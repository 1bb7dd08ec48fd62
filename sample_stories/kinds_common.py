"""Sentences that any plot may use: openings, walking, weather, time, scenery, meeting somebody on the way."""

from __future__ import annotations

from sample_stories import lexicon as lex
from sample_stories.table import Values, kind
from sample_stories.world import World


def _set_sky(world: World, v: Values) -> None:
    world.later(v["w"])
    world.need(v["w"] in lex.TIMES[:4], "a story begins by day")
    world.weather = lex.SKY_OF[v["k"]]


@kind("open_at", opening=True)
def open_at(world: World, v: Values) -> None:
    _set_sky(world, v)
    world.need(v["p"] not in lex.HOMES, "one is simply 在家里 at home")
    world.introduce(v["a"], v["p"])
    world.present(v["a"])
    world.doing(v["x"], v["p"])


@kind("open_home", opening=True)
def open_home(world: World, v: Values) -> None:
    _set_sky(world, v)
    world.introduce(v["a"], lex.home(v["a"]))
    world.present(v["a"])
    world.doing(v["x"], lex.home(v["a"]))


@kind("open_pair", opening=True)
def open_pair(world: World, v: Values) -> None:
    _set_sky(world, v)
    world.introduce(v["a"], v["p"])
    world.introduce(v["b"], v["p"])
    owner = lex.HOMES.get(v["p"])
    world.need(owner in (None, v["b"]), f"{v['p']} is the home of {owner}, not of {v['b']}")
    world.present(v["a"])
    world.doing(v["x"], v["p"])


@kind("open_sky", opening=True)
def open_sky(world: World, v: Values) -> None:
    _set_sky(world, v)
    world.stage = "sky"


def _first_person(world: World, v: Values, place: str) -> None:
    world.need(not world.at, "the story already has somebody")
    world.introduce(v["a"], place)
    world.present(v["a"])
    world.doing(v["x"], place)


@kind("first_at")
def first_at(world: World, v: Values) -> None:
    world.need(v["p"] not in lex.HOMES, "one is simply 在家里 at home")
    _first_person(world, v, v["p"])


@kind("first_home")
def first_home(world: World, v: Values) -> None:
    _first_person(world, v, lex.home(v["a"]))


@kind("go", most=5)
def go(world: World, v: Values) -> None:
    world.need((v["a"], v["p"]) not in world.been, f"{v['a']} was at {v['p']} before and would go back (回)")
    world.move(v["a"], v["p"])


@kind("go_out", most=2)
def go_out(world: World, v: Values) -> None:
    world.need(lex.indoors(world.present(v["a"])), f"{v['a']} is not behind a door")
    left = world.heading and (world.counts["way_ask"] or world.goal == "plan")
    world.need(not left, f"{v['a']} has left the house already")
    go(world, v)


@kind("go_see", most=3)
def go_see(world: World, v: Values) -> None:
    go(world, v)
    world.need(v["b"] in world.known or v["p"] not in lex.HOMES, f"{v['b']} is unknown")
    world.need(lex.HOMES.get(v["p"]) in (None, v["b"]), f"{v['p']} is not the home of {v['b']}")
    world.introduce(v["b"], v["p"])
    world.doing(v["x"], v["p"])
    ill = world.facts.get("r") == "病了" and world.facts.get("b") == v["b"]
    world.need((v["x"] in lex.ILL_ACTS) == ill, f"{v['x']} does not fit {v['b']}")


@kind("see", most=3)
def see(world: World, v: Values) -> None:
    seer = v.get("a", world.actor)
    place = world.present(seer)
    owner = lex.HOMES.get(place)
    world.need(owner in (None, v["b"]), f"{place} is not the home of {v['b']}")
    world.introduce(v["b"], place)
    world.doing(v["x"], place)
    ill = world.facts.get("r") == "病了" and world.facts.get("b") == v["b"]
    world.need((v["x"] in lex.ILL_ACTS) == ill, f"{v['x']} does not fit {v['b']}")


@kind("back", most=3)
def back(world: World, v: Values) -> None:
    world.need((v["a"], v["p"]) in world.been, f"{v['a']} never was at {v['p']}")
    world.need(v["p"] != lex.home(v["a"]), "one goes back 回家 to one's own home")
    world.move(v["a"], v["p"])


@kind("back_time")
def back_time(world: World, v: Values) -> None:
    world.later(v["w"])
    back(world, v)


@kind("home", most=2)
def go_home(world: World, v: Values) -> None:
    world.need(world.facts.get("a") == v["a"], f"{v['a']} has no reason to go home now")
    world.move(v["a"], lex.home(v["a"]))


@kind("time")
def time(world: World, v: Values) -> None:
    world.need(bool(world.goal), "time passes before anything has begun")
    world.later(v["w"])


@kind("scene", most=2)
def scene(world: World, v: Values) -> None:
    place = world.present(world.actor)
    world.need(lex.SCENES[v["g"]] == place, f"“{v['g']}” is not seen at {place}")
    world.need(v["g"] not in world.scenes, "the same view twice")
    world.dry(place)
    world.scenes.add(v["g"])


@kind("arrive_scene", most=2)
def arrive_scene(world: World, v: Values) -> None:
    go(world, v)
    scene(world, v)


@kind("gear_rain", most=2)
def gear_rain(world: World, v: Values) -> None:
    _gear(world, v["a"], "雨")


@kind("gear_snow", most=2)
def gear_snow(world: World, v: Values) -> None:
    _gear(world, v["a"], "雪")


def _gear(world: World, person: str, weather: str) -> None:
    world.present(person)
    world.need(world.weather == weather, f"nobody dresses for {weather} in {world.weather}")
    world.need(person not in world.geared, f"{person} is already dressed for it")
    world.geared.add(person)


@kind("rain")
def rain(world: World, v: Values) -> None:
    world.need(world.weather in lex.FAIR, f"rain begins in {world.weather}")
    world.need(bool(world.goal), "it rains before anything has begun")
    world.weather = "雨"


@kind("shelter")
def shelter(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == v["p"], f"{v['a']} is not at {v['p']}")
    world.need(world.weather == "雨", "one does not shelter when it is dry")
    world.need(v["a"] not in world.geared, f"{v['a']} has something against the rain")
    world.need(lex.indoors(v["p"]) and v["p"] != lex.home(v["a"]), f"{v['p']} is no shelter for {v['a']}")


@kind("rain_stops")
def rain_stops(world: World, v: Values) -> None:
    world.need(world.weather == "雨", "rain stops that never fell")
    world.need(world.counts["rain"] == 0 or world.counts["shelter"] > 0, "rain that changes nothing")
    world.weather = "晴"
    world.geared.clear()


@kind("way_ask")
def way_ask(world: World, v: Values) -> None:
    here = world.present(v["a"])
    world.need(v["c"] not in world.at, f"{v['c']} cannot be on the road, but is at {world.at.get(v['c'])}")
    world.need(world.weather in lex.FAIR, "nobody stops to chat in the rain")
    world.need(bool(world.goal), f"{v['a']} has no reason to be on the road from {here}")
    world.at[v["c"]] = "路上"
    world.facts["walker"], world.facts["asker"] = v["a"], v["c"]
    world.actor = v["c"]
    world.question = "way"


def _way_answer(world: World, v: Values, place: str) -> None:
    world.need(world.facts["walker"] == v["a"], f"{world.facts['asker']} asked somebody else")
    world.heading = place
    world.question = "way_bye"


@kind("way_buy", answers=("way",))
def way_buy(world: World, v: Values) -> None:
    world.step("errand cook", "buying", t=v["t"])
    world.need(lex.SOLD_AT.get(v["t"]) == v["p"], f"{v['p']} does not sell {v['t']}")
    _way_answer(world, v, v["p"])


@kind("way_work", answers=("way",))
def way_work(world: World, v: Values) -> None:
    world.step("lend", "lent", p=v["p"], y=v["y"])
    world.need(v.get("t", world.facts["t"]) == world.facts["t"], f"{v.get('t')} is not what was lent")
    _way_answer(world, v, v["p"])


@kind("way_gift", answers=("way",))
def way_gift(world: World, v: Values) -> None:
    world.step("gift", "ready", t=v["t"])
    world.need(v.get("b", world.facts["b"]) == world.facts["b"], "the gift is for somebody else")
    place = lex.home(world.facts["b"])
    world.need(v.get("p", place) == place, f"{world.facts['b']} does not live at {v.get('p')}")
    _way_answer(world, v, place)


@kind("way_message", answers=("way",))
def way_message(world: World, v: Values) -> None:
    world.step("message", "carrying", a=v["a"])
    for role in ("b", "c"):
        world.need(v.get(role, world.facts[role]) == world.facts[role], f"{v.get(role)} has no part in the message")
    place = lex.home(world.facts["c"])
    world.need(v.get("p", place) == place, f"{world.facts['c']} does not live at {v.get('p')}")
    _way_answer(world, v, place)


@kind("way_bye", answers=("way_bye",))
def way_bye(world: World, v: Values) -> None:
    world.need(world.facts["asker"] == v["c"], f"{v['c']} is not the one who asked")
