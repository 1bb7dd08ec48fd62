"""Plots about people: appointments and the weather, messages, planting together, lost animals, an umbrella brought."""

from __future__ import annotations

from sample_stories import lexicon as lex
from sample_stories.table import Values, kind
from sample_stories.world import World

# --- plan: a and b agree on a time, a place and something to do; the weather allows it or not


@kind(
    "plan_make",
    "{a}和{b}约好{w}去{p}{x}。",
    "{b}跟{a}说好了，{w}一起去{p}{x}。",
    "{a}{w}要和{b}到{p}{x}，心里盼着呢。",
    "“{w}我要和{b}去{p}{x}。”{a}高兴地想。",
    "前一天，{a}就约了{b}，{w}去{p}{x}。",
)
def plan_make(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == lex.home(v["a"]), f"{v['a']} is not at home")
    world.need(v["p"] in lex.OUTDOORS and v["x"] in lex.acts_at(v["p"]), f"nobody does {v['x']} at {v['p']}")
    world.need(lex.TIMES.index(v["w"]) > world.hour, f"{v['w']} is already over")
    world.need(v["b"] not in world.at, f"{v['b']} is here already")
    world.known.add(v["b"])
    world.start("plan", "agreed", **v)


@kind(
    "plan_time",
    "{w}到了，{a}准时出了门。",
    "到了{w}，{a}高高兴兴地出了门。",
    "好不容易等到{w}，{a}赶紧出门。",
    "一到{w}，{a}就动身了。",
)
def plan_time(world: World, v: Values) -> None:
    world.step("plan", "agreed", "going", a=v["a"], w=v["w"])
    world.present(v["a"])
    world.later(v["w"])
    world.need(world.weather in lex.FAIR, f"{v['a']} sets out in {world.weather}")
    world.heading = world.facts["p"]


@kind(
    "plan_meet",
    "{b}已经等在那里了。",
    "等了一会儿，{b}也来了。",
    "{b}早就到了，正向{a}招手。",
    "{a}刚站稳，{b}就跑了过来。",
    "{a}远远看见{b}，两人都笑了。",
)
def plan_meet(world: World, v: Values) -> None:
    world.step("plan", "going", "met", **v)
    world.need(world.present(world.facts["a"]) == world.facts["p"], f"they agreed to meet at {world.facts['p']}")
    world.introduce(v["b"], world.facts["p"])


@kind(
    "plan_do",
    "{a}和{b}一起{x}，开心极了。",
    "{a}和{b}在{p}{x}，忘了时间。",
    "{a}{x}，{b}也{x}，比一比谁更棒。",
    "{b}陪着{a}{x}，两人笑个不停。",
    "在{p}，{a}和{b}一边{x}，一边说笑。",
)
def plan_do(world: World, v: Values) -> None:
    world.step("plan", "met", "done", **v)
    place = world.present(v["a"], v["b"])
    world.dry(place)


@kind(
    "plan_snack",
    "{a}累了，{b}递过来一块糖。",
    "{a}拿出两个橘子，分给{b}一个。",
    "{b}口渴了，{a}把水让给{b:他}喝。",
    "{a}和{b}坐下来歇了歇，吃了些点心。",
)
def plan_snack(world: World, v: Values) -> None:
    world.step("plan", "done", **v)
    world.present(v["a"], v["b"])


@kind(
    "plan_spoilt",
    "“下雨了，去不成{p}了。”{a}叹了口气。",
    "{a}望着窗外，看来{p}是去不成了。",
    "{a}很失望，这样的天气不能去{p}{x}了。",
    "“雨这么大，怎么去{p}{x}呢？”{a}发愁了。",
)
def plan_spoilt(world: World, v: Values) -> None:
    world.step("plan", "agreed", "spoilt", **v)
    world.present(v["a"])
    world.need(world.weather == "雨", f"nothing spoils the plan in {world.weather}")


@kind(
    "plan_visit",
    "这时，{b}打着雨伞来了。",
    "有人敲门，原来是{b}，雨衣上还滴着水。",
    "{b}冒着雨来了，{a}连忙请{b:他}进屋。",
    "门开了，{b}收起雨伞走进来。",
)
def plan_visit(world: World, v: Values) -> None:
    world.step("plan", "spoilt", "visited", **v)
    world.need(world.weather == "雨", "nobody needs an umbrella now")
    world.introduce(v["b"], lex.home(world.facts["a"]))


@kind(
    "plan_instead",
    "{b}说：“那我们就在家里{o}吧。”",
    "“不要紧，在屋里{o}也很好。”{b}说。",
    "{b}想了个主意：“不如在家{o}吧。”",
    "“我们改成{o}，好不好？”{b}提议。",
)
def plan_instead(world: World, v: Values) -> None:
    world.step("plan", "visited", "instead", b=v["b"])
    world.need(v["o"] in lex.HOME_ACTS, f"nobody does {v['o']} at home")
    world.present(v["b"])
    world.facts["o"] = v["o"]
    world.question = "plan_instead"


@kind(
    "plan_agree",
    "{a}一听，马上笑了。",
    "“好主意！”{a}说。",
    "{a}点点头：“就这么办。”",
    "“好啊。”{a}高兴起来。",
    answers=("plan_instead",),
)
def plan_agree(world: World, v: Values) -> None:
    world.step("plan", "instead", "indoors", a=v["a"])


@kind(
    "plan_indoors",
    "{a}和{b}一起{o}，屋里笑声不断。",
    "{a}跟{b}一边{o}，一边听雨声。",
    "{b}陪{a}{o}，一点儿也不觉得闷。",
    "于是，{a}和{b}在屋里{o}。",
)
def plan_indoors(world: World, v: Values) -> None:
    world.step("plan", "indoors", "done", **v)
    world.present(v["a"], v["b"])


@kind(
    "plan_end",
    "{a}和{b}都觉得，这一天没有白过。",
    "{a}对{b}说：“跟{b:你}在一起，做什么都开心。”",
    "“下次再一起玩吧！”{b}对{a}说。",
    "直到天黑，{a}才和{b}道别。",
    "这一天过得真快，{a}和{b}都舍不得分开。",
    "{b}走的时候，和{a}又约好了下一次。",
)
def plan_end(world: World, v: Values) -> None:
    world.step("plan", "done", **v)
    world.close("plan")


# --- message: b asks a to tell c when to come where


@kind(
    "msg_ask",
    "{b}说：“{a}，请告诉{c}，{n}到{p}{x}。”",
    "“{a}，帮我给{c}带个话，{n}去{p}{x}。”{b}说。",
    "{b}想请{c}{n}到{p}{x}，让{a}去说一声。",
    "{b}对{a}说：“麻烦{a:你}跟{c}说，{n}在{p}{x}。”",
)
def msg_ask(world: World, v: Values) -> None:
    world.present(v["b"], v["a"])
    world.need(v["p"] in lex.PLACES and v["x"] in lex.acts_at(v["p"]), f"nobody does {v['x']} at {v['p']}")
    world.need(v["c"] not in world.at, f"{v['c']} is here already")
    world.known.add(v["c"])
    world.start("message", "asked", **v)
    world.question = "message"


@kind(
    "msg_yes",
    "{a}说：“好，我马上去。”",
    "{a}记在心里，转身就走。",
    "“放心，我一定带到。”{a}说。",
    "{a}点点头，把话又念了一遍。",
    answers=("message",),
)
def msg_yes(world: World, v: Values) -> None:
    world.step("message", "asked", "carrying", a=v["a"])


@kind(
    "msg_tell",
    "{a}对{c}说：“{b}请{c:你}{n}到{p}{x}。”",
    "“{c}，{b}让我告诉{c:你}，{n}去{p}{x}。”{a}说。",
    "{a}说：“{c}，{b}说{n}在{p}{x}，请{c:你}去。”",
    "“{b}叫我带话，{n}到{p}{x}。”{a}告诉{c}。",
)
def msg_tell(world: World, v: Values) -> None:
    world.step("message", "carrying", "told", **v)
    world.present(v["a"], v["c"])
    world.question = "told"


@kind(
    "msg_got",
    "{c}说：“知道了，我{n}一定去{p}。”",
    "“太好了，{n}见！”{c}高兴地说。",
    "{c}笑着说：“好，替我谢谢{b}。”",
    "“{p}？我正想去呢！”{c}说。",
    "{c}听了很高兴：“正好我{n}有空。”",
    answers=("told",),
)
def msg_got(world: World, v: Values) -> None:
    world.step("message", "told", "got", **v)


@kind(
    "msg_report",
    "{a}告诉{b}，话已经带到了。",
    "“{c}答应了。”{a}对{b}说。",
    "{a}对{b}说：“放心吧，{c}{n}会去的。”",
    "“我跟{c}说好了。”{a}告诉{b}。",
)
def msg_report(world: World, v: Values) -> None:
    world.step("message", "got", "done", **v)
    world.present(v["a"], v["b"])


@kind(
    "msg_end",
    "{b}说：“{a}，谢谢{a:你}。”",
    "{b}夸{a}记性好，一个字也没说错。",
    "{a}虽然跑了一趟，心里却很高兴。",
    "“有{a}在，什么话都丢不了。”{b}笑着说。",
    "{b}放心了，拿出糖果请{a}吃。",
    "就这样，{a}替{b}办好了一件事。",
)
def msg_end(world: World, v: Values) -> None:
    world.step("message", "done", **v)
    world.close("message")


# --- plant: a brings the spade, b the bucket; hole, tree, water, in this order


@kind(
    "plant_plan",
    "{a}想在{p}种一棵{v}。",
    "{a}打算在{p}栽一棵{v}。",
    "“在这里种一棵{v}吧。”{a}站在{p}想。",
    "{a}早就盼着在{p}种一棵小{v}了。",
)
def plant_plan(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == v["p"], f"{v['a']} is not at {v['p']}")
    world.need(v["p"] in lex.OUTDOORS, f"no tree grows inside {v['p']}")
    world.dry(v["p"])
    world.start("plant", "plan", **v)


@kind(
    "plant_spade",
    "{a}带来了{t:一}。",
    "{a}扛着{t:一}，准备动手。",
    "{a}从家里拿来{t:一}。",
    "{a}有{t:一}，正好用得上。",
)
def plant_spade(world: World, v: Values) -> None:
    world.step("plant", "plan", "spade", a=v["a"])
    world.need(v["t"] == "铁锹", f"one digs with 铁锹, not {v['t']}")
    world.present(v["a"])
    world.appear(v["t"], v["a"])


@kind(
    "plant_bucket",
    "{b}提着{u:一}来帮忙。",
    "不一会儿，{b}也来了，手里提着{u:一}。",
    "{b}听说了，带着{u:一}跑来。",
    "“我来帮忙！”{b}提来了{u:一}。",
)
def plant_bucket(world: World, v: Values) -> None:
    world.step("plant", "spade", "bucket")
    world.need(v["u"] == "水桶", f"one waters with 水桶, not {v['u']}")
    world.introduce(v["b"], world.facts["p"])
    world.facts["b"] = v["b"]
    world.appear(v["u"], v["b"])


@kind(
    "plant_dig",
    "{a}用{t}挖了一个深深的坑。",
    "{a}拿起{t}，很快挖好了坑。",
    "{a}挥动{t}，挖出一个圆圆的坑。",
    "{a}用{t:那}挖坑，累得满头是汗。",
)
def plant_dig(world: World, v: Values) -> None:
    world.step("plant", "bucket", "hole", a=v["a"])
    world.has(v["a"], v["t"])
    world.present(v["a"])


@kind(
    "plant_set",
    "{b}扶着{v}，{a}往坑里填土。",
    "{b}把{v}放进坑里，扶得直直的。",
    "{a}和{b}把{v}栽进坑里。",
    "{b}小心地把{v}立在坑中间。",
)
def plant_set(world: World, v: Values) -> None:
    world.step("plant", "hole", "set", **v)
    world.present(v["b"])


@kind(
    "plant_water",
    "{b}用{u}打来水，浇在{v}下面。",
    "{b}提起{u}，给{v}浇了水。",
    "{b}用{u}浇水，{v}喝得饱饱的。",
    "最后，{b}用{u:那}给{v}浇足了水。",
)
def plant_water(world: World, v: Values) -> None:
    world.step("plant", "set", "done", b=v["b"], v=v["v"])
    world.has(v["b"], v["u"])
    world.present(v["b"])


@kind("plant_hope", "{a}问：“{v}什么时候能长高？”", "“{v}几年才能长大？”{b}问。", "“明年这时候，{v}会有多高？”{a}问。")
def plant_hope(world: World, v: Values) -> None:
    world.step("plant", "done", **v)
    world.question = "plant_b" if "a" in v else "plant_a"


@kind(
    "plant_say_b",
    "{b}说：“只要常来浇水，很快就会长高。”",
    "“别急，它会一年比一年高。”{b}回答。",
    answers=("plant_b",),
)
@kind("plant_say_a", "{a}说：“过几年就比我们高了。”", "“耐心等吧，它会长大的。”{a}回答。", answers=("plant_a",))
def plant_say(world: World, v: Values) -> None:
    world.step("plant", "done", **v)


@kind(
    "plant_end",
    "{a}和{b}看着{v}，心里充满了希望。",
    "从此，{p}多了一棵{v}。",
    "{a}和{b}说好，以后常来看{v}。",
    "风一吹，{v}好像在向{a}和{b}点头。",
    "{a}说：“等{v}长大了，请{b}来乘凉。”",
)
def plant_end(world: World, v: Values) -> None:
    world.step("plant", "done", **v)
    world.close("plant")


# --- animal: b's animal has run off; a looks in one place, asks c, finds it in another


@kind(
    "animal_lost",
    "{b}说：“我的{t}跑丢了，怎么办？”",
    "“{a}，{a:你}看见我的{t}没有？它不见了！”{b}急着问。",
    "{b}急得直跺脚，因为{t}不见了，{a}听了也着急。",
    "{b}的{t}跑丢了，{b:他}难过得快哭了，问{a}怎么办。",
)
def animal_lost(world: World, v: Values) -> None:
    world.need(v["t"] in lex.ANIMALS, f"{v['t']} does not run away")
    here = world.present(v["b"])
    others = [person for person, place in world.at.items() if person != v["b"] and place == here]
    world.need(len(others) == 1 and v.get("a", others[0]) == others[0], f"{v['b']} speaks to nobody who is there")
    world.start("animal", "lost", **{**v, "a": others[0]})
    world.lying[v["t"]] = ("", "")
    world.question = "animal_lost"


@kind(
    "animal_help",
    "{a}说：“{b}别急，我去找{t}。”",
    "“{t}跑不远，我去找。”{a}安慰{b}。",
    "{a}没看见，决定帮{b}去找{t}。",
    "“没看见，不过我会把{t}找回来的。”{a}说。",
    answers=("animal_lost",),
)
def animal_help(world: World, v: Values) -> None:
    world.step("animal", "lost", "helping", **v)


@kind(
    "animal_miss",
    "{a}找遍了{p}，没有看见{t}。",
    "{a}大声叫着，可{t}不在{p}。",
    "{p}找过了，没有{t}。",
    "{a}在{p}转了一圈，连{t}的影子也没有。",
)
def animal_miss(world: World, v: Values) -> None:
    world.step("animal", "helping", "missed", t=v["t"])
    world.need(v.get("a", world.facts["a"]) == world.facts["a"], f"{v.get('a')} is not looking for it")
    world.need(world.present(world.facts["a"]) == v["p"], f"{world.facts['a']} is not at {v['p']}")


@kind(
    "animal_ask",
    "“{c}，{c:你}看见{t:一}了吗？”{a}问。",
    "{a}问{c}：“有没有{t:一}跑过去？”",
    "{a}向{c}打听{t}的下落。",
    "“{c}，有{t:一}从这儿跑过吗？”{a}问。",
)
def animal_ask(world: World, v: Values) -> None:
    world.step("animal", "helping missed", "asked", a=v["a"], t=v["t"])
    world.present(v["a"], v["c"])
    world.need(v["c"] != world.facts["b"], f"{v['c']} is the one who lost it")
    world.facts["c"] = v["c"]
    world.question = "animal"


@kind(
    "animal_catch",
    "{a}轻轻走过去，一把抱住{t}。",
    "{a}蹲下来，把{t}抱在怀里。",
    "{t}认得{a}，乖乖地让{a:他}抱起来。",
    "{a}悄悄走到{t}身后，把它抱了起来。",
)
def animal_catch(world: World, v: Values) -> None:
    world.step("animal", "found", "caught", a=v["a"], t=v["t"])
    world.present(v["a"])
    del world.lying[v["t"]]
    world.appear(v["t"], v["a"])


@kind(
    "animal_give",
    "{a}把{t}交给{b}。",
    "“{b}，{t}找回来了！”{a}说着，把它送到{b}怀里。",
    "{a}抱着{t}，送到{b}面前。",
    "“看，这是谁？”{a}把{t}递给{b}。",
)
def animal_give(world: World, v: Values) -> None:
    world.step("animal", "caught", "done", a=v["a"], b=v["b"], t=v["t"])
    world.give(v["a"], v["b"], v["t"])


@kind(
    "animal_joy",
    "{b}摸着{t}，高兴得说不出话来。",
    "{b}抱紧{t}，笑了。",
    "{t}在{b}怀里叫个不停。",
    "“{t}，{t}，下次可别乱跑了！”{b}说。",
)
def animal_joy(world: World, v: Values) -> None:
    world.step("animal", "done", **v)
    world.has(v["b"], v["t"])


@kind(
    "animal_end",
    "{b}说：“{a}，太谢谢{a:你}了！”",
    "从此，{b}每天都把{t}看得牢牢的。",
    "能帮{b}找回{t}，{a}也很开心。",
    "{b}请{a}坐下吃点心，{t}就睡在旁边。",
    "后来，{t}一见{a}就跑过来。",
    "{b}逢人就说，是{a}找回了{t}。",
)
def animal_end(world: World, v: Values) -> None:
    world.step("animal", "done", **v)
    world.close("animal")


# --- umbrella: it rains, a has none, b brings one and both walk home


@kind(
    "umbrella_stuck",
    "{a}没带伞，站在{p}发愁。",
    "“没有伞，怎么离开{p}呢？”{a}想。",
    "{a}被雨困在{p}，回不了家。",
    "{a}出门没带伞，只好留在{p}。",
)
def umbrella_stuck(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == v["p"], f"{v['a']} is not at {v['p']}")
    world.need(world.weather == "雨", "one needs no umbrella when it is dry")
    world.need(v["a"] not in world.geared and v["p"] not in lex.HOMES, f"{v['a']} is not stuck at {v['p']}")
    world.start("umbrella", "stuck", **v)


@kind(
    "umbrella_think",
    "{b}在家里想起{a}没带伞，心里放不下。",
    "{b}知道{a}还在{p}，决定去接{a:他}。",
    "家里的{b}看看天，担心起{a}来。",
    "“{a}没带伞，怎么回来？”{b}在家里想。",
)
def umbrella_think(world: World, v: Values) -> None:
    for role in ("a", "p"):
        world.need(v.get(role, world.facts.get(role)) == world.facts.get(role), f"{v.get(role)} is not in trouble")
    world.step("umbrella", "stuck", "thought")
    world.introduce(v["b"], lex.home(v["b"]))
    world.facts["b"] = v["b"]


@kind(
    "umbrella_come",
    "{b}打着{t:一}来到{p}。",
    "{b}拿起{t:一}，冒雨赶到{p}。",
    "{b}撑开{t:一}，往{p}走去，很快就到了。",
    "{b}马上带着{t:一}，去{p}接{a}。",
)
def umbrella_come(world: World, v: Values) -> None:
    world.step("umbrella", "thought", "come", b=v["b"], p=v["p"])
    world.need(v.get("a", world.facts["a"]) == world.facts["a"], f"{v.get('a')} is not in trouble")
    world.need(v["t"] == "伞", f"{v['t']} does not help against rain")
    world.appear(v["t"], v["b"])
    world.geared.update((v["b"], world.facts["a"]))
    world.move(v["b"], v["p"])


@kind(
    "umbrella_hail",
    "“{a}，我来接{a:你}了！”{b}喊道。",
    "{a}看见{b}来了，又惊又喜。",
    "{b}说：“{a}，走，咱们回家。”",
    "“{b}，{b:你}怎么来了？”{a}高兴地说。",
)
def umbrella_hail(world: World, v: Values) -> None:
    world.step("umbrella", "come", "hailed", **v)
    world.present(v["a"], v["b"])


@kind(
    "umbrella_walk",
    "{a}和{b}合打{t:那}，慢慢往家走。",
    "{b}举着{t}，一路送{a}回家。",
    "{t:一}遮着{a}和{b}两个人，他们一起走回家。",
    "雨点打在{t}上，{a}和{b}边走边聊。",
)
def umbrella_walk(world: World, v: Values) -> None:
    world.step("umbrella", "hailed", "walked", a=v["a"], b=v["b"])
    world.present(v["a"], v["b"])
    world.need(world.weather == "雨", "the rain is over")
    world.has(v["b"], v["t"])
    world.at[v["a"]] = world.at[v["b"]] = "路上"


@kind(
    "umbrella_wet",
    "{b}把伞往{a}那边歪，自己的肩膀湿了一大片。",
    "到家一看，{b}的半边衣服都湿了。",
    "{a}发现{b}的肩膀淋湿了，心里很感动。",
    "{b}生怕{a}淋着，自己倒湿了半边。",
)
def umbrella_wet(world: World, v: Values) -> None:
    world.step("umbrella", "walked", "done", **v)
    world.present(v["b"], world.facts["a"])


@kind(
    "umbrella_end",
    "{a}对{b}说：“谢谢{b:你}来接我。”",
    "雨再大，{a}心里也是暖的，因为有{b}。",
    "{a}想，下次下雨，也要去接{b}。",
    "“下次出门，记得看天。”{b}笑着对{a}说。",
    "这场雨，让{a}和{b}更亲近了。",
    "{b}说：“只要{a}没淋着就好。”",
)
def umbrella_end(world: World, v: Values) -> None:
    world.step("umbrella", "done", **v)
    world.close("umbrella")
