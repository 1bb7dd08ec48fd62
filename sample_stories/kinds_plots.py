"""The sentences of each plot, in the order in which a story tells them.

What `Event` says of one is all that it needs; a function below it adds what only this sentence asks for.
"""

from __future__ import annotations

from sample_stories import lexicon as lex
from sample_stories.table import SOLD_THERE, Event, Relation, Values
from sample_stories.world import World

# what the words of a sentence must have to do with each other
WORK_OF_TOOL = Relation(
    lambda v: lex.WORKS[v["y"]] == v["t"] and v["p"] in lex.TOOLS[v["t"]].places, "{y} is not done with {t} at {p}"
)
RESULT_OF_TOOL = Relation(lambda v: lex.RESULTS[v["z"]] == v["t"], "{t} does not do that: {z}")
SOLD_AT_THE_SHOP = Relation(lambda v: lex.SOLD_AT.get(v["u"]) == v["p"], "{p} does not sell {u}")
MADE_OF = Relation(lambda v: {v["t"], v["u"]} == set(lex.DISHES[v["d"]].ingredients), "{d} is not made of {t} and {u}")
A_GIFT = Relation(lambda v: v["t"] in lex.GIFTS, "{t} is no gift")
TOYS = Relation(lambda v: {v["t"], v["u"]} <= lex.TOYS.keys(), "nobody swaps {t} and {u}")
DONE_THERE = Relation(lambda v: v["p"] in lex.PLACES and v["x"] in lex.acts_at(v["p"]), "nobody does {x} at {p}")
DONE_OUTDOORS = Relation(lambda v: v["p"] in lex.OUTDOORS and v["x"] in lex.acts_at(v["p"]), "nobody does {x} at {p}")
DONE_AT_HOME = Relation(lambda v: v["o"] in lex.HOME_ACTS, "nobody does {o} at home")
A_TREE_GROWS_THERE = Relation(lambda v: v["p"] in lex.OUTDOORS, "no tree grows inside {p}")
NOT_THE_OWNER = Relation(lambda v: v["c"] != v["b"], "{c} is the one who lost it")
NOT_THE_GUEST = Relation(lambda v: v["c"] != v.get("b"), "{c} is the guest")


def _last_seen(world: World, v: Values, person: str) -> None:
    """The thing lies at a spot of a place where that person is not."""
    world.need(world.at[person] != v["p"], f"{person} and {v['t']} would be at the same place, {v['p']}")
    _has_spot(world, v["p"], v["s"])
    world.lying[v["t"]] = (v["p"], v["s"])
    world.facts["p"] = v["p"]


def _has_spot(world: World, place: str, spot: str) -> None:
    world.need(place in lex.PLACES and spot in lex.PLACES[place].spots, f"{place} has no {spot}")
    world.anchored.add(place)


def _pick_up(world: World, v: Values) -> None:
    del world.lying[v["t"]]
    world.appear(v["t"], v["a"])


# --- lend: a needs a tool, borrows it from b, works with it, brings it back

Event("lend_need", "lend", "", "need", here="a", fits=WORK_OF_TOOL)
Event("lend_owner", "lend", "need", "owner", knows="b", appears="tb")
Event("lend_ask", "lend", "owner", "asked", here="ab", asks="lend")
Event("lend_yes", "lend", "asked", "lent", gives="bat", answers=("lend",))
Event("lend_thanks", "lend", "lent", here="ab")
Event(
    "lend_use", "lend", "lent", "used", about="abt", here="a", at="p", weather=lex.FAIR, has="at", fits=RESULT_OF_TOOL
)
Event("lend_return", "lend", "used", "done", gives="abt")
Event("lend_end", "lend", "done", ends=True)

# --- lost: a misses something, asks b who saw it or remembers, finds it there


@Event("lost_miss", "lost", "", "missing", here="a")
def _it_lies_somewhere(world: World, v: Values) -> None:
    world.lying[v["t"]] = ("", "")


Event("lost_ask", "lost", "missing", "asked", here="ab", asks="lost")


@Event("lost_seen", "lost animal", "asked", "told", about="at", answers=("lost", "animal"))
def _seen_by_who_was_asked(world: World, v: Values) -> None:
    asked = world.facts["c" if world.goal == "animal" else "b"]
    world.need(v["b"] == asked, f"{v['b']} was not asked")
    _last_seen(world, v, asked)


@Event("lost_recall", "lost", "missing", "told", about="at")
def _seen_by_who_misses_it(world: World, v: Values) -> None:
    _last_seen(world, v, v["a"])


@Event("lost_find", "lost animal", "told", "found", about="at", here="a")
def _it_lies_here(world: World, v: Values) -> None:
    here = world.at[world.facts["a"]]
    world.need(world.lying.get(v["t"]) == (here, v["s"]), f"{v['t']} is not at {here}, {v['s']}")


Event("lost_take", "lost", "found", "done", here="a")(_pick_up)
Event("lost_tell", "lost", "done", here="ab", has="at")
Event("lost_end", "lost", "done", has="at", ends=True)

# --- found: a picks something up, b knows whose it is, a brings it to c


@Event("found_pick", "found", "", "picked", here="a", appears="ta")
def _it_lay_here(world: World, v: Values) -> None:
    world.facts["p"] = world.at[v["a"]]
    _has_spot(world, world.facts["p"], v["s"])


Event("found_ask", "found", "picked", "asked", here="ab", asks="found")
Event("found_owner", "found", "asked", "known", knows="c", answers=("found",))
Event("found_go", "found", "known", here="a")
Event("found_give", "found", "known", "done", gives="act")
Event("found_joy", "found", "done", here="c")
Event("found_ask_where", "found", "done", here="c", asks="found_where")
Event("found_where", "found", "done", answers=("found_where",))
Event("found_end", "found", "done", ends=True)

# --- errand: b sends a to buy something
Event("errand_ask", "errand", "", "asked", here="ba", home="b", asks="errand", fits=SOLD_THERE)
Event("errand_yes", "errand", "asked", "buying", here="a", answers=("errand",))


@Event("buy", "errand cook", "buying", "bought", here="a", appears="ta")
def _it_is_sold_here(world: World, v: Values) -> None:
    world.need(lex.SOLD_AT.get(v["t"]) == world.at[v["a"]], f"{world.at[v['a']]} does not sell {v['t']}")


Event("errand_give", "errand", "bought", "done", gives="abt")


@Event("errand_check", "errand", "done", here="b")
def _asks_how_it_went(world: World, v: Values) -> None:
    world.question = "price" if "t" in v else "crowd" if "p" in v else "tired"


for _question in ("tired", "crowd", "price"):
    Event(f"errand_{_question}", "errand", "done", answers=(_question,))
Event("errand_end", "errand", "done", ends=True)

# --- gift: b has a reason to be visited, a brings a present
Event("gift_reason", "gift", "", "ready", here="a", knows="b", appears="ta", fits=A_GIFT)
Event("gift_give", "gift", "ready", "given", gives="abt")
for _reason in lex.REASONS:
    Event(f"wish_{_reason}", "gift", "ready given", only={"r": _reason}, here="ab")
Event("gift_joy", "gift", "given", "done", here="b", has="bt")
Event("gift_tea", "gift", "done", here="ab")
Event("gift_end", "gift", "done", ends=True)

# --- cook: a lacks one ingredient (u), buys it or asks a neighbour, cooks, shares with b


@Event("cook_plan", "cook", "", "buying", here="a", home="a", knows="b", appears="ta", fits=MADE_OF)
def _one_ingredient_is_there(world: World, v: Values) -> None:
    world.facts["t"] = v["u"]  # what is to be bought


Event("cook_where", "cook", "buying", about="au", fits=SOLD_AT_THE_SHOP, here="a", toward="p")
Event(
    "cook_neighbour", "cook", "buying", "neighbour", here="a", knows="c", appears="uc", fits=NOT_THE_GUEST, toward="c"
)
Event("cook_beg", "cook", "neighbour", "begged", here="ac", asks="cook")
Event("cook_get", "cook", "begged", "bought", gives="cau", answers=("cook",))
Event("cook_make", "cook", "bought", "cooked", about="ad", here="a", home="a", has="at au", fits=MADE_OF)
Event("cook_eat", "cook", "cooked", "done", here="a", enters="b")
Event("cook_praise", "cook", "done", here="b")
Event("cook_end", "cook", "done", ends=True)

# --- swap: a and b play with each other's toys, then give them back
Event("swap_have", "swap", "", "have", here="ab", appears="ta ub", fits=TOYS)
Event("swap_ask", "swap", "have", "asked", here="ab", asks="swap")
Event("swap_yes", "swap", "asked", "swapped", gives="bau abt", answers=("swap",))
Event("swap_play_a", "swap", "swapped", here="a", has="au")
Event("swap_play_b", "swap", "swapped", here="b", has="bt")


@Event("swap_back", "swap", "swapped", "done", gives="bat abu")
def _they_have_played(world: World, v: Values) -> None:
    world.need(world.counts["swap_play_a"] + world.counts["swap_play_b"] > 0, "they swapped and never played")


Event("swap_end", "swap", "done", ends=True)

# --- plan: a and b agree on a time, a place and something to do; the weather allows it or not


@Event("plan_make", "plan", "", "agreed", here="a", home="a", knows="b", fits=DONE_OUTDOORS)
def _the_time_is_to_come(world: World, v: Values) -> None:
    world.need(lex.TIMES.index(v["w"]) > world.hour, f"{v['w']} is already over")


@Event("plan_time", "plan", "agreed", "going", here="a", weather=lex.FAIR, toward="p")
def _the_time_has_come(world: World, v: Values) -> None:
    world.later(v["w"])


Event("plan_meet", "plan", "going", "met", here="a", at="p", enters="b")
Event("plan_do", "plan", "met", "done", here="ab", weather=lex.FAIR)
Event("plan_snack", "plan", "done", here="ab")
Event("plan_spoilt", "plan", "agreed", "spoilt", here="a", weather="雨")
Event("plan_visit", "plan", "spoilt", "visited", here="a", home="a", weather="雨", enters="b")
Event("plan_instead", "plan", "visited", "instead", here="b", asks="plan_instead", fits=DONE_AT_HOME)
Event("plan_agree", "plan", "instead", "indoors", answers=("plan_instead",))
Event("plan_indoors", "plan", "indoors", "done", here="ab")
Event("plan_end", "plan", "done", ends=True)

# --- message: b asks a to tell c when to come where

Event("msg_ask", "message", "", "asked", here="ba", knows="c", asks="message", fits=DONE_THERE)
Event("msg_yes", "message", "asked", "carrying", answers=("message",))
Event("msg_tell", "message", "carrying", "told", here="ac", asks="told")
Event("msg_got", "message", "told", "got", answers=("told",))
Event("msg_report", "message", "got", "done", here="ab")
Event("msg_end", "message", "done", ends=True)

# --- plant: a brings the spade, b the bucket; hole, tree, water, in this order
Event("plant_plan", "plant", "", "plan", here="a", at="p", weather=lex.FAIR, fits=A_TREE_GROWS_THERE)
Event("plant_spade", "plant", "plan", "spade", only={"t": "铁锹"}, here="a", appears="ta")
Event("plant_bucket", "plant", "spade", "bucket", only={"u": "水桶"}, here="a", at="p", enters="b", appears="ub")
Event("plant_dig", "plant", "bucket", "hole", here="a", has="at")
Event("plant_set", "plant", "hole", "set", here="b")
Event("plant_water", "plant", "set", "done", here="b", has="bu")


@Event("plant_hope", "plant", "done")
def _the_other_replies(world: World, v: Values) -> None:
    world.question = "plant_b" if "a" in v else "plant_a"


Event("plant_say_a", "plant", "done", answers=("plant_a",))
Event("plant_say_b", "plant", "done", answers=("plant_b",))
Event("plant_end", "plant", "done", ends=True)

# --- animal: b's animal has run off; a looks in one place, asks c, finds it in another


@Event("animal_lost", "animal", "", "lost", here="b", asks="animal_lost")
def _somebody_can_help(world: World, v: Values) -> None:
    world.need(v["t"] in lex.ANIMALS, f"{v['t']} does not run away")
    others = [person for person, place in world.at.items() if person != v["b"] and place == world.at[v["b"]]]
    world.need(len(others) == 1 and v.get("a", others[0]) == others[0], f"{v['b']} speaks to nobody who is there")
    world.facts["a"] = others[0]
    world.lying[v["t"]] = ("", "")


Event("animal_help", "animal", "lost", "helping", answers=("animal_lost",))
Event("animal_miss", "animal", "helping", "missed", about="at", here="a", at="p")
Event("animal_ask", "animal", "helping missed", "asked", here="ac", asks="animal", fits=NOT_THE_OWNER)
Event("animal_catch", "animal", "found", "caught", here="a")(_pick_up)
Event("animal_give", "animal", "caught", "done", gives="abt")
Event("animal_joy", "animal", "done", has="bt")
Event("animal_end", "animal", "done", ends=True)

# --- umbrella: it rains, a has none, b brings one and both walk home


@Event("umbrella_stuck", "umbrella", "", "stuck", here="a", at="p", weather="雨")
def _has_nothing_against_the_rain(world: World, v: Values) -> None:
    world.need(v["a"] not in world.geared and v["p"] not in lex.HOMES, f"{v['a']} is not stuck at {v['p']}")


@Event("umbrella_think", "umbrella", "stuck", "thought")
def _thinks_of_it_at_home(world: World, v: Values) -> None:
    world.introduce(v["b"], lex.home(v["b"]))


@Event("umbrella_come", "umbrella", "thought", "come", only={"t": "伞"}, appears="tb")
def _comes_through_the_rain(world: World, v: Values) -> None:
    world.geared.update((v["b"], world.facts["a"]))
    world.move(v["b"], v["p"])


Event("umbrella_hail", "umbrella", "come", "hailed", here="ab")


@Event("umbrella_walk", "umbrella", "hailed", "walked", here="ab", weather="雨", has="bt")
def _walk_home(world: World, v: Values) -> None:
    world.at[v["a"]] = world.at[v["b"]] = "路上"


Event("umbrella_wet", "umbrella", "walked", "done", here="ba")
Event("umbrella_end", "umbrella", "done", ends=True)
