"""How a story comes about: each plot draws who, what and where, then tells its events, some of them optional."""

from __future__ import annotations

from sample_stories import lexicon as lex
from sample_stories.teller import Teller


def lend(t: Teller) -> None:
    """Somebody borrows a tool, works with it and returns it."""
    a, b, tool = t.person(), t.person(), t.pick(list(lex.TOOLS))
    _, work, places, results = lex.TOOLS[tool]
    place = t.pick(places)
    t.start(a, latest=2)
    t.say("lend_need", a=a, p=place, y=work, t=tool)
    t.say("lend_owner", a=a, b=b, t=tool)
    t.call_on(a, b, lex.home(b), lex.HOME_ACTS)
    t.say("lend_ask", a=a, b=b, t=tool, y=work)
    t.say("lend_yes", a=a, b=b, t=tool)
    t.perhaps(0.5, "lend_thanks", a=a, b=b, t=tool)
    t.shower(a, 0.15)
    t.go(a, place, lambda c: t.say("way_work", a=a, p=place, y=work, t=tool))
    t.say("lend_use", a=a, b=b, t=tool, z=t.pick(results))
    t.back(a, lex.home(b))
    t.say("lend_return", a=a, b=b, t=tool)
    t.say("lend_end", a=a, b=b, t=tool)


def lost(t: Teller) -> None:
    """Somebody misses a thing, asks or remembers, and finds it."""
    a, b, thing = t.person(), t.person(), t.pick(list(lex.BELONGINGS))
    here, place = t.shuffled(lex.SEARCHABLE)[:2]
    spot, asks = t.pick(lex.PLACES[place].spots), t.maybe(0.6)
    if asks and t.maybe(0.5):
        t.start_pair(a, b, here)
    elif asks or t.maybe(0.4):
        t.start(a, here)
    else:
        t.start(a)
    t.say("lost_miss", a=a, t=thing)
    if asks:
        if b not in t.world.at:
            t.say("see", a=a, b=b, x=t.pick(lex.acts_at(here)))
        t.say("lost_ask", a=a, b=b, t=thing)
        t.say("lost_seen", a=a, b=b, t=thing, p=place, s=spot)
    else:
        t.say("lost_recall", a=a, t=thing, p=place, s=spot)
    t.go(a, place)
    t.say("lost_find", a=a, t=thing, s=spot)
    t.say("lost_take", a=a, t=thing)
    if asks and t.maybe(0.4):
        t.back(a, t.world.at[b])
        t.say("lost_tell", a=a, b=b, t=thing)
    elif t.maybe(0.5):
        t.say("home", a=a)
    t.say("lost_end", a=a, t=thing)


def found(t: Teller) -> None:
    """Somebody finds a thing, learns whose it is and brings it back."""
    a, b, c, thing = t.person(), t.person(), t.person(), t.pick(list(lex.BELONGINGS))
    place = t.pick(lex.SEARCHABLE)
    spot, paired = t.pick(lex.PLACES[place].spots), t.maybe(0.5)
    if paired:
        t.start_pair(a, b, place)
    else:
        t.start(a, place)
    t.say("found_pick", a=a, s=spot, t=thing)
    if not paired:
        t.say("see", a=a, b=b, x=t.pick(lex.acts_at(place)))
    t.say("found_ask", a=a, b=b, t=thing)
    t.say("found_owner", b=b, c=c, t=thing)
    t.perhaps(0.5, "found_go", a=a, c=c, t=thing)
    t.call_on(a, c, lex.home(c), lex.HOME_ACTS)
    t.say("found_give", a=a, c=c, t=thing)
    t.perhaps(0.6, "found_joy", c=c, t=thing)
    if t.maybe(0.4):
        t.say("found_ask_where", a=a, c=c, t=thing)
        t.say("found_where", a=a, c=c, p=place, s=spot)
    t.say("found_end", a=a, c=c)


def errand(t: Teller) -> None:
    """Somebody is sent shopping and brings what was asked for."""
    a, b, good = t.person(lex.YOUNG), t.person(lex.ELDERS), t.pick(list(lex.SOLD_AT))
    place = lex.SOLD_AT[good]
    t.start_pair(a, b, lex.home(b), ("晴", "晴", "阴", "雨", "雪"))
    t.say("errand_ask", a=a, b=b, p=place, t=good)
    t.say("errand_yes", a=a)
    t.go(a, place, lambda c: t.say("way_buy", a=a, p=place, t=good))
    t.say("buy", a=a, t=good)
    t.shower(a)
    t.back(a, lex.home(b))
    t.say("errand_give", a=a, b=b, t=good)
    if t.maybe(0.5):
        t.say("errand_check", b=b, **t.pick([{"t": good}, {"p": place}, {"a": a}]))
        t.say(f"errand_{t.world.question}", a=a)
    t.say("errand_end", a=a, b=b, t=good)


def gift(t: Teller) -> None:
    """Somebody brings a present to a person who has a reason to get one."""
    a, b, thing, reason = t.person(), t.person(), t.pick(list(lex.GIFTS)), t.pick(lex.REASONS)
    t.start(a, weathers=("晴", "晴", "阴", "雨", "雪"))
    t.say("gift_reason", a=a, b=b, r=reason, t=thing)
    t.call_on(
        a,
        b,
        lex.home(b),
        lex.ILL_ACTS if reason == "病了" else lex.HOME_ACTS,
        lambda c: t.say("way_gift", a=a, b=b, p=lex.home(b), t=thing),
    )
    wish = t.maybe(0.7)
    if wish and t.maybe(0.5):
        t.say(f"wish_{reason}", a=a, b=b)
        wish = False
    t.say("gift_give", a=a, b=b, t=thing)
    if wish:
        t.say(f"wish_{reason}", a=a, b=b)
    t.say("gift_joy", a=a, b=b, t=thing)
    t.perhaps(0.5, "gift_tea", a=a, b=b)
    t.say("gift_end", a=a, b=b, t=thing)


def cook(t: Teller) -> None:
    """Somebody lacks an ingredient, gets it, cooks and shares."""
    a, b, c, dish = t.person(), t.person(), t.person(), t.pick(list(lex.DISHES))
    have, lack = t.shuffled(lex.DISHES[dish].ingredients)
    t.start(a, weathers=("晴", "晴", "阴", "雨"))
    t.say("cook_plan", a=a, b=b, d=dish, t=have, u=lack)
    if t.maybe(0.5):
        place = lex.SOLD_AT[lack]
        t.say("cook_where", a=a, p=place, u=lack)
        t.go(a, place, lambda c: t.say("way_buy", a=a, p=place, t=lack))
        t.say("buy", a=a, t=lack)
        t.shower(a, 0.15)
    else:
        t.say("cook_neighbour", a=a, c=c, u=lack)
        t.call_on(a, c, lex.home(c), lex.HOME_ACTS)
        t.say("cook_beg", a=a, c=c, u=lack, d=dish)
        t.say("cook_get", a=a, c=c, u=lack)
    t.say("home", a=a)
    t.say("cook_make", a=a, t=have, u=lack, d=dish)
    t.say("cook_eat", a=a, b=b, d=dish)
    t.perhaps(0.6, "cook_praise", a=a, b=b, d=dish)
    t.say("cook_end", a=a, b=b, d=dish)


def swap(t: Teller) -> None:
    """Two children play with each other's toys."""
    a, b = t.person(lex.YOUNG), t.person(lex.YOUNG)
    mine, yours = t.shuffled(list(lex.TOYS))[:2]
    place = t.pick(["河边", "公园", "村口", "操场", "山坡"])
    if t.maybe(0.6):
        t.start_pair(a, b, place)
    else:
        t.start(a, place)
        t.say("see", a=a, b=b, x=t.pick(lex.acts_at(place)))
    values = {"a": a, "b": b, "t": mine, "u": yours}
    t.say("swap_have", **values)
    t.say("swap_ask", **values)
    t.say("swap_yes", **values)
    t.say("swap_play_a", a=a, u=yours)
    t.perhaps(0.7, "swap_play_b", b=b, t=mine)
    t.look_around(place, 0.4)
    t.perhaps(0.4, "time", w=lex.TIMES[t.world.hour + 1])
    t.say("swap_back", **values)
    t.say("swap_end", a=a, b=b)


def plan(t: Teller) -> None:
    """Two people have an appointment; the weather lets them or makes them stay in."""
    a, b, place = t.person(), t.person(), t.pick(lex.OUTDOORS)
    act = t.pick(lex.acts_at(place))
    t.start(a, latest=2)
    time = t.pick(lex.TIMES[t.world.hour + 1 : 5])
    values = {"a": a, "b": b, "p": place, "x": act, "w": time}
    t.say("plan_make", **values)
    if t.maybe(0.5):
        t.say("plan_time", a=a, w=time)
        t.go(a, place)
        t.say("plan_meet", a=a, b=b)
        t.say("plan_do", a=a, b=b, p=place, x=act)
        if t.maybe(0.6):
            t.say("plan_snack", a=a, b=b)
    else:
        t.say("rain")
        t.say("plan_spoilt", a=a, p=place, x=act)
        t.say("plan_visit", a=a, b=b)
        other = t.pick(lex.HOME_ACTS)
        t.say("plan_instead", b=b, o=other)
        t.say("plan_agree", a=a)
        t.say("plan_indoors", a=a, b=b, o=other)
    t.say("plan_end", a=a, b=b)


def message(t: Teller) -> None:
    """Somebody carries an invitation to a third person and reports back."""
    a, b, c = t.person(lex.YOUNG), t.person(), t.person()
    place = t.pick(list(lex.PLACES)[:12])
    values = {"a": a, "b": b, "c": c, "n": t.pick(lex.TOMORROW), "p": place, "x": t.pick(lex.acts_at(place))}
    t.start_pair(a, b, lex.home(b), ("晴", "晴", "阴", "雪"))
    t.say("msg_ask", **values)
    t.say("msg_yes", a=a)
    t.call_on(a, c, lex.home(c), lex.HOME_ACTS, lambda _: t.say("way_message", a=a, b=b, c=c, p=lex.home(c)))
    t.say("msg_tell", **values)
    t.say("msg_got", **values)
    t.back(a, lex.home(b))
    t.say("msg_report", **values)
    t.say("msg_end", a=a, b=b)


def plant(t: Teller) -> None:
    """Two people plant a tree, one with a spade, one with a bucket."""
    a, b, tree = t.person(), t.person(), t.pick(lex.TREES)
    place = t.pick(["河边", "公园", "村口", "果园", "山坡", "操场"])
    t.start(a, place)
    t.say("plant_plan", a=a, p=place, v=tree)
    t.say("plant_spade", a=a, t="铁锹")
    t.say("plant_bucket", b=b, u="水桶")
    t.say("plant_dig", a=a, t="铁锹")
    t.say("plant_set", a=a, b=b, v=tree)
    t.say("plant_water", b=b, u="水桶", v=tree)
    t.look_around(place, 0.4)
    if t.maybe(0.6):
        asker, other = t.pick([("a", "b"), ("b", "a")])
        t.say("plant_hope", v=tree, **{asker: {"a": a, "b": b}[asker]})
        t.say(f"plant_say_{other}", **{other: {"a": a, "b": b}[other]})
    t.say("plant_end", a=a, b=b, v=tree, p=place)


def animal(t: Teller) -> None:
    """Somebody looks for a lost animal and brings it home."""
    a, b, c, pet = t.person(), t.person(), t.person(), t.pick(list(lex.ANIMALS))
    first, second = t.shuffled(lex.OUTDOORS)[:2]
    spot = t.pick(lex.PLACES[second].spots)
    t.start_pair(a, b, lex.home(b))
    t.say("animal_lost", a=a, b=b, t=pet)
    t.say("animal_help", a=a, b=b, t=pet)
    if t.maybe(0.4):
        t.go(a, first)
        t.say("animal_miss", a=a, p=first, t=pet)
        t.say("see", a=a, b=c, x=t.pick(lex.acts_at(first)))
    else:
        t.call_on(a, c, first, lex.acts_at(first))
    t.say("animal_ask", a=a, c=c, t=pet)
    t.say("lost_seen", b=c, a=a, p=second, s=spot, t=pet)
    t.go(a, second)
    t.say("lost_find", a=a, s=spot, t=pet)
    t.say("animal_catch", a=a, t=pet)
    t.back(a, lex.home(b))
    t.say("animal_give", a=a, b=b, t=pet)
    t.perhaps(0.5, "animal_joy", b=b, t=pet)
    t.say("animal_end", a=a, b=b, t=pet)


def umbrella(t: Teller) -> None:
    """Rain keeps somebody from going home until another brings an umbrella."""
    a, b = t.person(), t.person()
    place = t.pick([name for name in lex.PLACES if lex.indoors(name)])
    t.start(a, place, ("雨",))
    t.look_around(place, 0.4)
    t.say("umbrella_stuck", a=a, p=place)
    t.say("umbrella_think", a=a, b=b, p=place)
    t.say("umbrella_come", a=a, b=b, p=place, t="伞")
    t.say("umbrella_hail", a=a, b=b)
    t.perhaps(0.3, "time", w=lex.TIMES[t.world.hour + 1])
    t.say("umbrella_walk", a=a, b=b, t="伞")
    t.say("umbrella_wet", a=a, b=b)
    t.say("umbrella_end", a=a, b=b)


PLOTS = (lend, lost, found, errand, gift, cook, swap, plan, message, plant, animal, umbrella)
# A third of the plots and half of the people, for a model that has minutes on two CPU cores (docs/dev/log.md).
HAMLET_PLOTS = (lost, swap, plant, umbrella)
HAMLET_PEOPLE = ["小明", "小红", "阿福", "丽丽", "乐乐", "小兰", "王爷爷", "李奶奶", "周老师", "赵大爷"]
