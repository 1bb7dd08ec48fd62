"""Sentences that any plot may use: openings, walking, weather, time, scenery, meeting somebody on the way."""

from __future__ import annotations

from sample_stories import lexicon as lex
from sample_stories.table import Values, kind
from sample_stories.world import World


def _set_sky(world: World, v: Values) -> None:
    world.later(v["w"])
    world.need(v["w"] in lex.TIMES[:4], "a story begins by day")
    world.weather = lex.SKY_OF[v["k"]]


@kind(
    "open_at",
    "{w}，{k}，{a}在{p}{x}。",
    "这天{w}，{k}，{a}正在{p}{x}。",
    "有一天{w}，{a}在{p}{x}，{k}。",
    "星期天{w}，{k}，{a}一个人在{p}{x}。",
    "那是一个{w}，{k}，{a}在{p}{x}。",
    "假期里的一个{w}，{k}，{a}在{p}{x}。",
    opening=True,
)
def open_at(world: World, v: Values) -> None:
    _set_sky(world, v)
    world.need(v["p"] not in lex.HOMES, "one is simply 在家里 at home")
    world.introduce(v["a"], v["p"])
    world.present(v["a"])
    world.doing(v["x"], v["p"])


@kind(
    "open_home",
    "{w}，{k}，{a}在家里{x}。",
    "这天{w}，{k}，{a}正在家里{x}。",
    "有一天{w}，{a}在家里{x}，{k}。",
    "星期天{w}，{k}，{a}待在家里{x}。",
    "那是一个{w}，{k}，{a}在自己家里{x}。",
    "{w}，{a}一边在家里{x}，一边看着窗外，{k}。",
    opening=True,
)
def open_home(world: World, v: Values) -> None:
    _set_sky(world, v)
    world.introduce(v["a"], lex.home(v["a"]))
    world.present(v["a"])
    world.doing(v["x"], lex.home(v["a"]))


@kind(
    "open_pair",
    "{w}，{k}，{a}和{b}在{p}{x}。",
    "这天{w}，{k}，{a}来到{p}，和{b}一起{x}。",
    "有一天{w}，{a}在{p}陪{b}{x}，{k}。",
    "星期天{w}，{k}，{a}去{p}和{b}一起{x}。",
    "那是一个{w}，{k}，{a}正在{p}跟{b}一起{x}。",
    opening=True,
)
def open_pair(world: World, v: Values) -> None:
    _set_sky(world, v)
    world.introduce(v["a"], v["p"])
    world.introduce(v["b"], v["p"])
    owner = lex.HOMES.get(v["p"])
    world.need(owner in (None, v["b"]), f"{v['p']} is the home of {owner}, not of {v['b']}")
    world.present(v["a"])
    world.doing(v["x"], v["p"])


@kind(
    "open_sky",
    "这天{w}，{k}。",
    "有一天{w}，{k}。",
    "星期天{w}，{k}。",
    "放假的第一天，{w}，{k}。",
    "普普通通的一个{w}，{k}。",
    "周末的一个{w}，{k}。",
    opening=True,
)
def open_sky(world: World, v: Values) -> None:
    _set_sky(world, v)
    world.stage = "sky"


def _first_person(world: World, v: Values, place: str) -> None:
    world.need(not world.at, "the story already has somebody")
    world.introduce(v["a"], place)
    world.present(v["a"])
    world.doing(v["x"], place)


@kind(
    "first_at",
    "{a}正在{p}{x}。",
    "{a}在{p}{x}，心里很快活。",
    "{a}独自来到{p}，正在{x}。",
    "{a}在{p}忙着{x}。",
    "这时候，{a}正在{p}{x}。",
)
def first_at(world: World, v: Values) -> None:
    world.need(v["p"] not in lex.HOMES, "one is simply 在家里 at home")
    _first_person(world, v, v["p"])


@kind(
    "first_home",
    "{a}正在家里{x}。",
    "{a}没有出门，在家里{x}。",
    "{a}在家里{x}，忙个不停。",
    "{a}吃过饭，在家里{x}。",
    "这时候，{a}正在家里{x}。",
)
def first_home(world: World, v: Values) -> None:
    _first_person(world, v, lex.home(v["a"]))


@kind(
    "go",
    "{a}走了一会儿，来到{p}。",
    "{a}一路小跑，到了{p}。",
    "{a}沿着小路走到{p}。",
    "{a}转过两个弯，就到了{p}。",
    "{a}哼着歌往{p}走，很快就到了。",
    "没过多久，{a}就走到了{p}。",
    "{a}加快脚步，赶到{p}。",
    "{a}穿过一条小巷，来到{p}。",
    "{a}过了一座小桥，前面就是{p}。",
    "于是，{a}去了{p}。",
    most=5,
)
def go(world: World, v: Values) -> None:
    world.need((v["a"], v["p"]) not in world.been, f"{v['a']} was at {v['p']} before and would go back (回)")
    world.move(v["a"], v["p"])


@kind(
    "go_out",
    "{a}出了门，不一会儿就到了{p}。",
    "{a}马上出门，朝{p}走去，没多久就到了。",
    "{a}推开门，快步走到{p}。",
    "{a}关好门，去了{p}。",
    "{a}连忙出门，来到{p}。",
    most=2,
)
def go_out(world: World, v: Values) -> None:
    world.need(lex.indoors(world.present(v["a"])), f"{v['a']} is not behind a door")
    left = world.heading and (world.counts["way_ask"] or world.goal == "plan")
    world.need(not left, f"{v['a']} has left the house already")
    go(world, v)


@kind(
    "go_see",
    "{a}来到{p}，{b}正在{x}。",
    "{a}走进{p}，看见{b}在{x}。",
    "{a}到了{p}，{b}正忙着{x}。",
    "{a}走到{p}的时候，{b}正在{x}。",
    "{a}到{p}一看，{b}正在{x}。",
    most=3,
)
def go_see(world: World, v: Values) -> None:
    go(world, v)
    world.need(v["b"] in world.known or v["p"] not in lex.HOMES, f"{v['b']} is unknown")
    world.need(lex.HOMES.get(v["p"]) in (None, v["b"]), f"{v['p']} is not the home of {v['b']}")
    world.introduce(v["b"], v["p"])
    world.doing(v["x"], v["p"])
    ill = world.facts.get("r") == "病了" and world.facts.get("b") == v["b"]
    world.need((v["x"] in lex.ILL_ACTS) == ill, f"{v['x']} does not fit {v['b']}")


@kind(
    "see",
    "{b}正在{x}。",
    "{a}看见{b}正在{x}。",
    "{b}正忙着{x}。",
    "{b}正好在，忙着{x}呢。",
    "{a}走近一看，{b}在{x}。",
    most=3,
)
def see(world: World, v: Values) -> None:
    seer = v.get("a", world.actor)
    place = world.present(seer)
    owner = lex.HOMES.get(place)
    world.need(owner in (None, v["b"]), f"{place} is not the home of {v['b']}")
    world.introduce(v["b"], place)
    world.doing(v["x"], place)
    ill = world.facts.get("r") == "病了" and world.facts.get("b") == v["b"]
    world.need((v["x"] in lex.ILL_ACTS) == ill, f"{v['x']} does not fit {v['b']}")


@kind(
    "back",
    "{a}回到{p}。",
    "{a}又回到了{p}。",
    "{a}往回走，不久就到了{p}。",
    "{a}顺着原路回到{p}。",
    "{a}快步走回{p}。",
    "{a}不敢耽搁，赶回了{p}。",
    most=3,
)
def back(world: World, v: Values) -> None:
    world.need((v["a"], v["p"]) in world.been, f"{v['a']} never was at {v['p']}")
    world.need(v["p"] != lex.home(v["a"]), "one goes back 回家 to one's own home")
    world.move(v["a"], v["p"])


@kind(
    "back_time",
    "{w}，{a}回到了{p}。",
    "到了{w}，{a}才回到{p}。",
    "{w}的时候，{a}走回了{p}。",
    "转眼到了{w}，{a}回到{p}。",
)
def back_time(world: World, v: Values) -> None:
    world.later(v["w"])
    back(world, v)


@kind(
    "home",
    "{a}回到家里。",
    "{a}高高兴兴地回了家。",
    "{a}快步走回家。",
    "{a}不敢耽搁，赶回家里。",
    "{a}顺着原路回了家。",
    "没过多久，{a}就到家了。",
    most=2,
)
def go_home(world: World, v: Values) -> None:
    world.need(world.facts.get("a") == v["a"], f"{v['a']} has no reason to go home now")
    world.move(v["a"], lex.home(v["a"]))


@kind(
    "time",
    "不知不觉到了{w}。",
    "转眼就是{w}了。",
    "时间过得真快，一会儿就到了{w}。",
    "说着说着，{w}到了。",
    "很快就到了{w}。",
)
def time(world: World, v: Values) -> None:
    world.need(bool(world.goal), "time passes before anything has begun")
    world.later(v["w"])


@kind("scene", "{g}。", "{g}，和往常一样。", "{g}，真让人喜欢。", "今天，{g}。", most=2)
def scene(world: World, v: Values) -> None:
    place = world.present(world.actor)
    world.need(lex.SCENES[v["g"]] == place, f"“{v['g']}” is not seen at {place}")
    world.need(v["g"] not in world.scenes, "the same view twice")
    world.dry(place)
    world.scenes.add(v["g"])


@kind(
    "arrive_scene",
    "{a}来到{p}，{g}。",
    "{a}到了{p}，{g}，和往常一样。",
    "{a}走到{p}，停下脚步，{g}。",
    "{a}赶到{p}的时候，{g}。",
    most=2,
)
def arrive_scene(world: World, v: Values) -> None:
    go(world, v)
    scene(world, v)


@kind(
    "gear_rain",
    "{a}怕淋湿，出门前撑起了雨伞。",
    "{a}见雨没有停，就穿上雨衣。",
    "外面还在下雨，{a}披上了雨衣。",
    "{a}看看窗外的雨，撑开雨伞。",
    "{a}不怕下雨，穿好雨鞋，打起雨伞。",
    most=2,
)
def gear_rain(world: World, v: Values) -> None:
    _gear(world, v["a"], "雨")


@kind(
    "gear_snow",
    "{a}怕冷，穿上了厚厚的大衣。",
    "外面还在下雪，{a}裹紧了棉袄。",
    "{a}见雪没有停，就穿上棉鞋和大衣。",
    "{a}看看窗外的雪，披上大衣。",
    "{a}不怕下雪，穿好棉袄，系紧扣子。",
    most=2,
)
def gear_snow(world: World, v: Values) -> None:
    _gear(world, v["a"], "雪")


def _gear(world: World, person: str, weather: str) -> None:
    world.present(person)
    world.need(world.weather == weather, f"nobody dresses for {weather} in {world.weather}")
    world.need(person not in world.geared, f"{person} is already dressed for it")
    world.geared.add(person)


@kind(
    "rain",
    "忽然下起了雨。",
    "一阵雷声过后，大雨落了下来。",
    "天一下子暗了，雨点噼里啪啦地落下来。",
    "没想到，外面下起了大雨。",
    "正在这时，天上落下了雨点。",
    "一片乌云飘过来，下雨了。",
)
def rain(world: World, v: Values) -> None:
    world.need(world.weather in lex.FAIR, f"rain begins in {world.weather}")
    world.need(bool(world.goal), "it rains before anything has begun")
    world.weather = "雨"


@kind(
    "shelter",
    "{a}没带雨伞，只好在{p}躲雨。",
    "{a}怕淋湿，就在{p}等雨停。",
    "雨太大，{a}走不了，在{p}多待了一会儿。",
    "{a}只好留在{p}，看着窗外的雨。",
    "{a}在{p}一边躲雨，一边听雨声。",
)
def shelter(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == v["p"], f"{v['a']} is not at {v['p']}")
    world.need(world.weather == "雨", "one does not shelter when it is dry")
    world.need(v["a"] not in world.geared, f"{v['a']} has something against the rain")
    world.need(lex.indoors(v["p"]) and v["p"] != lex.home(v["a"]), f"{v['p']} is no shelter for {v['a']}")


@kind(
    "rain_stops",
    "过了一会儿，雨停了。",
    "还好，雨很快就停了。",
    "不久，雨过天晴，天边出现了一道彩虹。",
    "雨渐渐小了，最后停了。",
    "雨停了，空气格外清新。",
    "等了好一阵，雨总算停了。",
)
def rain_stops(world: World, v: Values) -> None:
    world.need(world.weather == "雨", "rain stops that never fell")
    world.need(world.counts["rain"] == 0 or world.counts["shelter"] > 0, "rain that changes nothing")
    world.weather = "晴"
    world.geared.clear()


@kind(
    "way_ask",
    "路上遇到{c}，{c}问：“{a}，{a:你}去哪儿呀？”",
    "半路上，{c}叫住{a}：“{a:你}这是要去哪里？”",
    "{a}在路上碰见{c}，{c}笑着问：“{a:你}要到哪儿去？”",
    "“{a}，{a:你}急急忙忙去哪儿？”{c}在路边问。",
)
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


@kind(
    "way_buy",
    "{a}说：“我去{p}买{t}。”",
    "“我要去{p}买{t:一}。”{a}回答。",
    "{a}答道：“去{p}，买{t:一}。”",
    answers=("way",),
)
def way_buy(world: World, v: Values) -> None:
    world.step("errand cook", "buying", t=v["t"])
    world.need(lex.SOLD_AT.get(v["t"]) == v["p"], f"{v['p']} does not sell {v['t']}")
    _way_answer(world, v, v["p"])


@kind(
    "way_work",
    "{a}说：“我去{p}{y}。”",
    "“去{p}{y}。”{a}回答。",
    "{a}答道：“我带着{t}，要去{p}{y}。”",
    answers=("way",),
)
def way_work(world: World, v: Values) -> None:
    world.step("lend", "lent", p=v["p"], y=v["y"])
    world.need(v.get("t", world.facts["t"]) == world.facts["t"], f"{v.get('t')} is not what was lent")
    _way_answer(world, v, v["p"])


@kind(
    "way_gift",
    "{a}说：“我去给{b}送{t:一}。”",
    "“我要把{t:这}送到{p}去。”{a}回答。",
    "{a}答道：“我去看{b}，{t}是送给{b:他}的。”",
    answers=("way",),
)
def way_gift(world: World, v: Values) -> None:
    world.step("gift", "ready", t=v["t"])
    world.need(v.get("b", world.facts["b"]) == world.facts["b"], "the gift is for somebody else")
    place = lex.home(world.facts["b"])
    world.need(v.get("p", place) == place, f"{world.facts['b']} does not live at {v.get('p')}")
    _way_answer(world, v, place)


@kind(
    "way_message",
    "{a}说：“我去{p}，给{c}带个话。”",
    "“我要去找{c}，{b}让我带个话。”{a}回答。",
    "{a}答道：“我替{b}去{p}传话。”",
    answers=("way",),
)
def way_message(world: World, v: Values) -> None:
    world.step("message", "carrying", a=v["a"])
    for role in ("b", "c"):
        world.need(v.get(role, world.facts[role]) == world.facts[role], f"{v.get(role)} has no part in the message")
    place = lex.home(world.facts["c"])
    world.need(v.get("p", place) == place, f"{world.facts['c']} does not live at {v.get('p')}")
    _way_answer(world, v, place)


@kind(
    "way_bye",
    "{c}点点头：“路上小心。”",
    "“那快去吧。”{c}挥挥手说。",
    "{c}说：“好，早去早回。”",
    "“慢慢走，别摔着。”{c}叮嘱道。",
    answers=("way_bye",),
)
def way_bye(world: World, v: Values) -> None:
    world.need(world.facts["asker"] == v["c"], f"{v['c']} is not the one who asked")
