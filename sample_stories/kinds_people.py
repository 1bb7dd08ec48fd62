"""Plots about people: appointments and the weather, messages, planting together, lost animals, an umbrella brought."""

from __future__ import annotations

from sample_stories import lexicon as lex
from sample_stories.table import Values, event, kind
from sample_stories.world import World

# --- plan: a and b agree on a time, a place and something to do; the weather allows it or not


@kind("plan_make")
def plan_make(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == lex.home(v["a"]), f"{v['a']} is not at home")
    world.need(v["p"] in lex.OUTDOORS and v["x"] in lex.acts_at(v["p"]), f"nobody does {v['x']} at {v['p']}")
    world.need(lex.TIMES.index(v["w"]) > world.hour, f"{v['w']} is already over")
    world.need(v["b"] not in world.at, f"{v['b']} is here already")
    world.known.add(v["b"])
    world.start("plan", "agreed", **v)


@kind("plan_time")
def plan_time(world: World, v: Values) -> None:
    world.step("plan", "agreed", "going", a=v["a"], w=v["w"])
    world.present(v["a"])
    world.later(v["w"])
    world.need(world.weather in lex.FAIR, f"{v['a']} sets out in {world.weather}")
    world.heading = world.facts["p"]


@kind("plan_meet")
def plan_meet(world: World, v: Values) -> None:
    world.step("plan", "going", "met", **v)
    world.need(world.present(world.facts["a"]) == world.facts["p"], f"they agreed to meet at {world.facts['p']}")
    world.introduce(v["b"], world.facts["p"])


@kind("plan_do")
def plan_do(world: World, v: Values) -> None:
    world.step("plan", "met", "done", **v)
    place = world.present(v["a"], v["b"])
    world.dry(place)


event("plan_snack", "plan", "done", here="ab")


@kind("plan_spoilt")
def plan_spoilt(world: World, v: Values) -> None:
    world.step("plan", "agreed", "spoilt", **v)
    world.present(v["a"])
    world.need(world.weather == "雨", f"nothing spoils the plan in {world.weather}")


@kind("plan_visit")
def plan_visit(world: World, v: Values) -> None:
    world.step("plan", "spoilt", "visited", **v)
    world.need(world.weather == "雨", "nobody needs an umbrella now")
    world.introduce(v["b"], lex.home(world.facts["a"]))


@kind("plan_instead")
def plan_instead(world: World, v: Values) -> None:
    world.step("plan", "visited", "instead", b=v["b"])
    world.need(v["o"] in lex.HOME_ACTS, f"nobody does {v['o']} at home")
    world.present(v["b"])
    world.facts["o"] = v["o"]
    world.question = "plan_instead"


event("plan_agree", "plan", "instead", "indoors", about="a", answers=("plan_instead",))
event("plan_indoors", "plan", "indoors", "done", here="ab")
event("plan_end", "plan", "done", ends=True)


# --- message: b asks a to tell c when to come where


@kind("msg_ask")
def msg_ask(world: World, v: Values) -> None:
    world.present(v["b"], v["a"])
    world.need(v["p"] in lex.PLACES and v["x"] in lex.acts_at(v["p"]), f"nobody does {v['x']} at {v['p']}")
    world.need(v["c"] not in world.at, f"{v['c']} is here already")
    world.known.add(v["c"])
    world.start("message", "asked", **v)
    world.question = "message"


event("msg_yes", "message", "asked", "carrying", about="a", answers=("message",))
event("msg_tell", "message", "carrying", "told", here="ac", asks="told")
event("msg_got", "message", "told", "got", answers=("told",))
event("msg_report", "message", "got", "done", here="ab")
event("msg_end", "message", "done", ends=True)


# --- plant: a brings the spade, b the bucket; hole, tree, water, in this order


@kind("plant_plan")
def plant_plan(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == v["p"], f"{v['a']} is not at {v['p']}")
    world.need(v["p"] in lex.OUTDOORS, f"no tree grows inside {v['p']}")
    world.dry(v["p"])
    world.start("plant", "plan", **v)


@kind("plant_spade")
def plant_spade(world: World, v: Values) -> None:
    world.step("plant", "plan", "spade", a=v["a"])
    world.need(v["t"] == "铁锹", f"one digs with 铁锹, not {v['t']}")
    world.present(v["a"])
    world.appear(v["t"], v["a"])


@kind("plant_bucket")
def plant_bucket(world: World, v: Values) -> None:
    world.step("plant", "spade", "bucket")
    world.need(v["u"] == "水桶", f"one waters with 水桶, not {v['u']}")
    world.introduce(v["b"], world.facts["p"])
    world.facts["b"] = v["b"]
    world.appear(v["u"], v["b"])


event("plant_dig", "plant", "bucket", "hole", about="a", here="a", has="at")
event("plant_set", "plant", "hole", "set", here="b")
event("plant_water", "plant", "set", "done", about="bv", here="b", has="bu")


@kind("plant_hope")
def plant_hope(world: World, v: Values) -> None:
    world.step("plant", "done", **v)
    world.question = "plant_b" if "a" in v else "plant_a"


event("plant_say_a", "plant", "done", answers=("plant_a",))
event("plant_say_b", "plant", "done", answers=("plant_b",))
event("plant_end", "plant", "done", ends=True)


# --- animal: b's animal has run off; a looks in one place, asks c, finds it in another


@kind("animal_lost")
def animal_lost(world: World, v: Values) -> None:
    world.need(v["t"] in lex.ANIMALS, f"{v['t']} does not run away")
    here = world.present(v["b"])
    others = [person for person, place in world.at.items() if person != v["b"] and place == here]
    world.need(len(others) == 1 and v.get("a", others[0]) == others[0], f"{v['b']} speaks to nobody who is there")
    world.start("animal", "lost", **{**v, "a": others[0]})
    world.lying[v["t"]] = ("", "")
    world.question = "animal_lost"


event("animal_help", "animal", "lost", "helping", answers=("animal_lost",))


@kind("animal_miss")
def animal_miss(world: World, v: Values) -> None:
    world.step("animal", "helping", "missed", t=v["t"])
    world.need(v.get("a", world.facts["a"]) == world.facts["a"], f"{v.get('a')} is not looking for it")
    world.need(world.present(world.facts["a"]) == v["p"], f"{world.facts['a']} is not at {v['p']}")


@kind("animal_ask")
def animal_ask(world: World, v: Values) -> None:
    world.step("animal", "helping missed", "asked", a=v["a"], t=v["t"])
    world.present(v["a"], v["c"])
    world.need(v["c"] != world.facts["b"], f"{v['c']} is the one who lost it")
    world.facts["c"] = v["c"]
    world.question = "animal"


@kind("animal_catch")
def animal_catch(world: World, v: Values) -> None:
    world.step("animal", "found", "caught", a=v["a"], t=v["t"])
    world.present(v["a"])
    del world.lying[v["t"]]
    world.appear(v["t"], v["a"])


event("animal_give", "animal", "caught", "done", about="abt", gives="abt")
event("animal_joy", "animal", "done", has="bt")
event("animal_end", "animal", "done", ends=True)


# --- umbrella: it rains, a has none, b brings one and both walk home


@kind("umbrella_stuck")
def umbrella_stuck(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == v["p"], f"{v['a']} is not at {v['p']}")
    world.need(world.weather == "雨", "one needs no umbrella when it is dry")
    world.need(v["a"] not in world.geared and v["p"] not in lex.HOMES, f"{v['a']} is not stuck at {v['p']}")
    world.start("umbrella", "stuck", **v)


@kind("umbrella_think")
def umbrella_think(world: World, v: Values) -> None:
    for role in ("a", "p"):
        world.need(v.get(role, world.facts.get(role)) == world.facts.get(role), f"{v.get(role)} is not in trouble")
    world.step("umbrella", "stuck", "thought")
    world.introduce(v["b"], lex.home(v["b"]))
    world.facts["b"] = v["b"]


@kind("umbrella_come")
def umbrella_come(world: World, v: Values) -> None:
    world.step("umbrella", "thought", "come", b=v["b"], p=v["p"])
    world.need(v.get("a", world.facts["a"]) == world.facts["a"], f"{v.get('a')} is not in trouble")
    world.need(v["t"] == "伞", f"{v['t']} does not help against rain")
    world.appear(v["t"], v["b"])
    world.geared.update((v["b"], world.facts["a"]))
    world.move(v["b"], v["p"])


event("umbrella_hail", "umbrella", "come", "hailed", here="ab")


@kind("umbrella_walk")
def umbrella_walk(world: World, v: Values) -> None:
    world.step("umbrella", "hailed", "walked", a=v["a"], b=v["b"])
    world.present(v["a"], v["b"])
    world.need(world.weather == "雨", "the rain is over")
    world.has(v["b"], v["t"])
    world.at[v["a"]] = world.at[v["b"]] = "路上"


@kind("umbrella_wet")
def umbrella_wet(world: World, v: Values) -> None:
    world.step("umbrella", "walked", "done", **v)
    world.present(v["b"], world.facts["a"])


event("umbrella_end", "umbrella", "done", ends=True)
