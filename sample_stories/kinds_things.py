"""Plots about a thing: lending, losing, finding, errands, gifts."""

from __future__ import annotations

from sample_stories import lexicon as lex
from sample_stories.table import Values, event, kind
from sample_stories.world import World

# --- lend: a needs a tool, borrows it from b, works with it, brings it back


@kind("lend_need")
def lend_need(world: World, v: Values) -> None:
    world.present(v["a"])
    world.need(lex.WORKS[v["y"]] == v["t"], f"{v['y']} is not done with {v['t']}")
    world.need(v["p"] in lex.TOOLS[v["t"]][2], f"nobody does {v['y']} at {v['p']}")
    world.start("lend", "need", **v)


@kind("lend_owner")
def lend_owner(world: World, v: Values) -> None:
    world.step("lend", "need", "owner", a=v["a"], t=v["t"])
    world.need(v["b"] not in world.at, f"{v['b']} is here already")
    world.known.add(v["b"])
    world.facts["b"] = v["b"]
    world.appear(v["t"], v["b"])


@kind("lend_ask")
def lend_ask(world: World, v: Values) -> None:
    world.step("lend", "owner", "asked", a=v["a"], b=v["b"], t=v["t"])
    world.need(v.get("y", world.facts["y"]) == world.facts["y"], f"{v['a']} wanted {world.facts['y']}")
    world.present(v["a"], v["b"])
    world.question = "lend"


event("lend_yes", "lend", "asked", "lent", about="abt", gives="bat", answers=("lend",))
event("lend_thanks", "lend", "lent", here="ab")


@kind("lend_use")
def lend_use(world: World, v: Values) -> None:
    world.step("lend", "lent", "used", a=v["a"], t=v["t"])
    world.need(v.get("b", world.facts["b"]) == world.facts["b"], f"{v['t']} belongs to {world.facts['b']}")
    here = world.present(v["a"])
    world.need(here == world.facts["p"], f"{v['a']} wanted to work at {world.facts['p']} but is at {here}")
    world.has(v["a"], v["t"])
    world.dry(here)
    world.need(lex.RESULTS[v["z"]] == v["t"], f"{v['t']} does not do that: {v['z']}")


event("lend_return", "lend", "used", "done", about="abt", gives="abt")


@kind("lend_end")
def lend_end(world: World, v: Values) -> None:
    world.close("lend")
    for role, value in v.items():
        world.need(world.facts[role] == value, f"{value} does not fit the ending")


# --- lost: a misses something, asks b who saw it, finds it there


@kind("lost_miss")
def lost_miss(world: World, v: Values) -> None:
    world.present(v["a"])
    world.start("lost", "missing", **v)
    world.lying[v["t"]] = ("", "")


@kind("lost_ask")
def lost_ask(world: World, v: Values) -> None:
    world.step("lost", "missing", "asked", a=v["a"], t=v["t"])
    world.present(v["a"], v["b"])
    world.facts["b"] = v["b"]
    world.question = "lost"


@kind("lost_seen", answers=("lost", "animal"))
def lost_seen(world: World, v: Values) -> None:
    world.step("lost animal", "asked", "told", t=v["t"])
    for role in ("a", "b"):
        teller = "c" if world.goal == "animal" and role == "b" else role
        world.need(v.get(role, world.facts[teller]) == world.facts[teller], f"{v.get(role)} was not asked")
    world.need(world.at[v["b"]] != v["p"], f"{v['b']} and {v['t']} would be at the same place, {v['p']}")
    world.need(v["s"] in lex.PLACES.get(v["p"], (0, 0, (), ()))[2], f"{v['p']} has no {v['s']}")
    world.lying[v["t"]] = (v["p"], v["s"])
    world.anchored.add(v["p"])
    world.facts["p"] = v["p"]


@kind("lost_recall")
def lost_recall(world: World, v: Values) -> None:
    world.step("lost", "missing", "told", a=v["a"], t=v["t"])
    world.need(world.at[v["a"]] != v["p"], f"{v['a']} is at {v['p']} already")
    world.need(v["s"] in lex.PLACES.get(v["p"], (0, 0, (), ()))[2], f"{v['p']} has no {v['s']}")
    world.lying[v["t"]] = (v["p"], v["s"])
    world.anchored.add(v["p"])
    world.facts["p"] = v["p"]


@kind("lost_find")
def lost_find(world: World, v: Values) -> None:
    world.step("lost animal", "told", "found", t=v["t"])
    here = world.present(v.get("a", world.facts["a"]))
    world.need(v.get("a", world.facts["a"]) == world.facts["a"], "somebody else looks for it")
    world.need(world.lying.get(v["t"]) == (here, v["s"]), f"{v['t']} is not at {here}, {v['s']}")


@kind("lost_take")
def lost_take(world: World, v: Values) -> None:
    world.step("lost", "found", "done", a=v["a"], t=v["t"])
    world.present(v["a"])
    del world.lying[v["t"]]
    world.appear(v["t"], v["a"])


event("lost_tell", "lost", "done", about="abt", here="ab", has="at")


@kind("lost_end")
def lost_end(world: World, v: Values) -> None:
    world.step("lost", "done", **v)
    world.has(v["a"], world.facts["t"])
    world.close("lost")


# --- found: a picks something up, b knows whose it is, a brings it to c


@kind("found_pick")
def found_pick(world: World, v: Values) -> None:
    here = world.present(v.get("a", world.actor))
    world.need(v["s"] in lex.PLACES.get(here, (0, 0, (), ()))[2], f"{here} has no {v['s']}")
    world.anchored.add(here)
    world.start("found", "picked", p=here, **v)
    world.appear(v["t"], v["a"])


@kind("found_ask")
def found_ask(world: World, v: Values) -> None:
    world.step("found", "picked", "asked", a=v["a"], t=v["t"])
    world.present(v["a"], v["b"])
    world.facts["b"] = v["b"]
    world.question = "found"


@kind("found_owner", answers=("found",))
def found_owner(world: World, v: Values) -> None:
    world.step("found", "asked", "known", b=v["b"], t=v["t"])
    world.need(v["c"] not in world.at, f"{v['c']} would be here")
    world.known.add(v["c"])
    world.facts["c"] = v["c"]


event("found_go", "found", "known", here="a")
event("found_give", "found", "known", "done", about="act", gives="act")
event("found_joy", "found", "done", about="ct", here="c")
event("found_ask_where", "found", "done", here="c", asks="found_where")
event("found_where", "found", "done", answers=("found_where",))
event("found_end", "found", "done", ends=True)


# --- errand: b sends a to buy something


@kind("errand_ask")
def errand_ask(world: World, v: Values) -> None:
    world.need(world.present(v["b"], v["a"]) == lex.home(v["b"]), f"{v['b']} is not at home")
    world.need(lex.SOLD_AT.get(v["t"]) == v["p"], f"{v['p']} does not sell {v['t']}")
    world.start("errand", "asked", **v)
    world.question = "errand"


event("errand_yes", "errand", "asked", "buying", about="a", here="a", answers=("errand",))


@kind("buy")
def buy(world: World, v: Values) -> None:
    world.step("errand cook", "buying", "bought", a=v["a"], t=v["t"])
    here = world.present(v["a"])
    world.need(lex.SOLD_AT.get(v["t"]) == here, f"{here} does not sell {v['t']}")
    world.appear(v["t"], v["a"])


event("errand_give", "errand", "bought", "done", about="abt", gives="abt")


@kind("errand_check")
def errand_check(world: World, v: Values) -> None:
    world.step("errand", "done", **v)
    world.present(v["b"])
    world.question = "price" if "t" in v else "crowd" if "p" in v else "tired"


for _question in ("tired", "crowd", "price"):
    event(f"errand_{_question}", "errand", "done", about="a", answers=(_question,))
event("errand_end", "errand", "done", ends=True)


# --- gift: b has a reason to be visited, a brings a present


@kind("gift_reason")
def gift_reason(world: World, v: Values) -> None:
    world.present(v["a"])
    world.need(v["t"] in lex.GIFTS, f"{v['t']} is no gift")
    world.need(v["b"] not in world.at, f"{v['b']} is here already")
    world.known.add(v["b"])
    world.start("gift", "ready", **v)
    world.appear(v["t"], v["a"])


event("gift_give", "gift", "ready", "given", about="abt", gives="abt")


def _wish(reason: str) -> None:
    @kind(f"wish_{reason}")
    def say(world: World, v: Values) -> None:
        world.step("gift", "ready given", **v, r=reason)
        world.present(world.facts["a"], world.facts["b"])


for _reason in lex.REASONS:
    _wish(_reason)


event("gift_joy", "gift", "given", "done", here="b", has="bt")
event("gift_tea", "gift", "done", here="ab")
event("gift_end", "gift", "done", ends=True)
