"""Plots about doing something together: cooking a dish and sharing it, swapping toys."""

from __future__ import annotations

from sample_stories import lexicon as lex
from sample_stories.table import Values, event, kind
from sample_stories.world import World

# --- cook: a lacks one ingredient, buys it or asks a neighbour, cooks, shares with b


@kind("cook_plan")
def cook_plan(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == lex.home(v["a"]), f"{v['a']} is not in the kitchen at home")
    world.need({v["t"], v["u"]} == set(lex.DISHES[v["d"]][1]), f"{v['d']} is not made of {v['t']} and {v['u']}")
    world.start("cook", "buying", a=v["a"], d=v["d"], have=v["t"], t=v["u"], b=v.get("b", ""))
    world.appear(v["t"], v["a"])
    if "b" in v:
        world.known.add(v["b"])


@kind("cook_where")
def cook_where(world: World, v: Values) -> None:
    world.step("cook", "buying", a=v["a"], t=v["u"])
    world.present(v["a"])
    world.need(lex.SOLD_AT.get(v["u"]) == v["p"], f"{v['p']} does not sell {v['u']}")
    world.heading = v["p"]


@kind("cook_neighbour")
def cook_neighbour(world: World, v: Values) -> None:
    world.step("cook", "buying", "neighbour", a=v["a"], t=v["u"])
    world.present(v["a"])
    world.need(v["c"] != world.facts["b"], f"{v['c']} is the guest")
    world.known.add(v["c"])
    world.facts["c"] = v["c"]
    world.heading = lex.home(v["c"])
    world.appear(v["u"], v["c"])


@kind("cook_beg")
def cook_beg(world: World, v: Values) -> None:
    world.step("cook", "neighbour", "begged", a=v["a"], t=v["u"], c=v["c"], d=v["d"])
    world.present(v["a"], v["c"])
    world.question = "cook"


@kind("cook_get", answers=("cook",))
def cook_get(world: World, v: Values) -> None:
    world.step("cook", "begged", "bought", a=v["a"], t=v["u"], c=v["c"])
    world.give(v["c"], v["a"], v["u"])


@kind("cook_make")
def cook_make(world: World, v: Values) -> None:
    world.step("cook", "bought", "cooked", a=v["a"], d=v["d"])
    world.need(world.present(v["a"]) == lex.home(v["a"]), f"{v['a']} is not in the kitchen at home")
    world.need({v["t"], v["u"]} == set(lex.DISHES[v["d"]][1]), f"{v['d']} is not made of {v['t']} and {v['u']}")
    world.has(v["a"], v["t"])
    world.has(v["a"], v["u"])


@kind("cook_eat")
def cook_eat(world: World, v: Values) -> None:
    world.step("cook", "cooked", "done", a=v["a"], d=v["d"])
    world.need(world.facts["b"] in ("", v["b"]), f"{world.facts['b']} was to be the guest")
    world.need(v["b"] not in world.at, f"{v['b']} is at {world.at.get(v['b'])}")
    world.introduce(v["b"], world.present(v["a"]))
    world.facts["b"] = v["b"]


event("cook_praise", "cook", "done", here="b")
event("cook_end", "cook", "done", ends=True)


# --- swap: a and b play with each other's toys, then give them back


@kind("swap_have")
def swap_have(world: World, v: Values) -> None:
    world.present(v["a"], v["b"])
    world.need(v["t"] in lex.TOYS and v["u"] in lex.TOYS, "nobody swaps those")
    world.start("swap", "have", **v)
    world.appear(v["t"], v["a"])
    world.appear(v["u"], v["b"])


event("swap_ask", "swap", "have", "asked", here="ab", asks="swap")


@kind("swap_yes", answers=("swap",))
def swap_yes(world: World, v: Values) -> None:
    world.step("swap", "asked", "swapped", **v)
    world.give(world.facts["a"], v["b"], v["t"])
    world.holder[v["u"]] = world.facts["a"]


@kind("swap_play_a")
@kind("swap_play_b")
def swap_play(world: World, v: Values) -> None:
    world.step("swap", "swapped", **v)
    world.has(v.get("a") or v["b"], v.get("u") or v["t"])
    world.present(v.get("a") or v["b"])


@kind("swap_back")
def swap_back(world: World, v: Values) -> None:
    world.step("swap", "swapped", "done", **v)
    world.need(world.counts["swap_play_a"] + world.counts["swap_play_b"] > 0, "they swapped and never played")
    world.present(v["a"], v["b"])
    world.holder[v["t"]], world.holder[v["u"]] = v["a"], v["b"]


event("swap_end", "swap", "done", ends=True)
