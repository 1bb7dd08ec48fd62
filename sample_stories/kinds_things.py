"""Plots about a thing: lending, losing, finding, errands, gifts, cooking, swapping."""

from __future__ import annotations

from sample_stories import lexicon as lex
from sample_stories.table import Values, kind
from sample_stories.world import World

# --- lend: a needs a tool, borrows it from b, works with it, brings it back


@kind(
    "lend_need",
    "{a}想去{p}{y}，可是没有{t}。",
    "{a}打算去{p}{y}，手边却没有{t}。",
    "去{p}{y}要用{t}，{a}却没有。",
    "{a}很想到{p}{y}，就缺{t:一}。",
    "“要是有{t:一}，我就能去{p}{y}了。”{a}想。",
    "{a}要到{p}{y}，翻遍屋子也没找到{t}。",
)
def lend_need(world: World, v: Values) -> None:
    world.present(v["a"])
    world.need(lex.WORKS[v["y"]] == v["t"], f"{v['y']} is not done with {v['t']}")
    world.need(v["p"] in lex.TOOLS[v["t"]][2], f"nobody does {v['y']} at {v['p']}")
    world.start("lend", "need", **v)


@kind(
    "lend_owner",
    "{a}想起{b}有{t:一}。",
    "{a}听说{b}家里有{t:一}，就想去借。",
    "{a}记得{b}有{t:一}，也许可以借来用用。",
    "{b}有{t:一}，{a}决定去问问{b:他}。",
    "“{b}不是有{t:一}吗？”{a}想。",
)
def lend_owner(world: World, v: Values) -> None:
    world.step("lend", "need", "owner", a=v["a"], t=v["t"])
    world.need(v["b"] not in world.at, f"{v['b']} is here already")
    world.known.add(v["b"])
    world.facts["b"] = v["b"]
    world.appear(v["t"], v["b"])


@kind(
    "lend_ask",
    "“{b}，能把{t}借给我用一用吗？”{a}问。",
    "{a}说：“{b}，我想借{t:一}，可以吗？”",
    "{a}问：“{b}，{t}能借我用半天吗？”",
    "“{b}，{b:你}的{t}现在用不用？我想借一下。”{a}说。",
    "{a}小声问：“{b}，我可以借{b:你}的{t}去{y}吗？”",
)
def lend_ask(world: World, v: Values) -> None:
    world.step("lend", "owner", "asked", a=v["a"], b=v["b"], t=v["t"])
    world.need(v.get("y", world.facts["y"]) == world.facts["y"], f"{v['a']} wanted {world.facts['y']}")
    world.present(v["a"], v["b"])
    world.question = "lend"


@kind(
    "lend_yes",
    "“拿去用吧。”{b}说着，把{t}递给{a}。",
    "{b}点点头，把{t:那}交给{a}。",
    "{b}答应了，从屋里拿出{t:那}，交给{a}。",
    "“当然可以。”{b}笑着把{t}借给了{a}。",
    "{b}一口答应，找出{t}，送到{a}手里。",
    "“用完记得还我。”{b}把{t}借给{a}，叮嘱道。",
    answers=("lend",),
)
def lend_yes(world: World, v: Values) -> None:
    world.step("lend", "asked", "lent", a=v["a"], b=v["b"], t=v["t"])
    world.give(v["b"], v["a"], v["t"])


@kind(
    "lend_thanks",
    "{a}谢过{b}，带着{t}走了。",
    "“谢谢{b}，我用完就还。”{a}接过{t}说。",
    "{a}抱着{t}，连声向{b}道谢。",
    "{a}说：“{b}放心，我会小心用{t}的。”",
)
def lend_thanks(world: World, v: Values) -> None:
    world.step("lend", "lent", **v)
    world.present(v["a"], v["b"])


@kind(
    "lend_use",
    "{a}用{t}{z}。",
    "{a}拿出{t}，不一会儿就{z}。",
    "{a}忙了好半天，用{t}{z}。",
    "有了{t}，{a}很快就{z}。",
    "{a}不慌不忙，用{b}的{t}{z}。",
)
def lend_use(world: World, v: Values) -> None:
    world.step("lend", "lent", "used", a=v["a"], t=v["t"])
    world.need(v.get("b", world.facts["b"]) == world.facts["b"], f"{v['t']} belongs to {world.facts['b']}")
    here = world.present(v["a"])
    world.need(here == world.facts["p"], f"{v['a']} wanted to work at {world.facts['p']} but is at {here}")
    world.has(v["a"], v["t"])
    world.dry(here)
    world.need(lex.RESULTS[v["z"]] == v["t"], f"{v['t']} does not do that: {v['z']}")


@kind(
    "lend_return",
    "{a}把{t}还给{b}。",
    "“{b}，谢谢{b:你}的{t}。”{a}把{t:那}还了。",
    "{a}擦干净{t}，还给了{b}。",
    "{a}双手捧着{t:那}，还给{b}。",
    "“{t}还给{b:你}。”{a}对{b}说。",
    "{a}找到{b}，把{t}还了回去。",
)
def lend_return(world: World, v: Values) -> None:
    world.step("lend", "used", "done", a=v["a"], b=v["b"], t=v["t"])
    world.give(v["a"], v["b"], v["t"])


@kind(
    "lend_end",
    "{b}笑着说：“有借有还，{a}下次再来借。”",
    "{a}觉得，有{b}这样的好邻居真好。",
    "{b}夸{a}：“说话算数，真不错！”",
    "从此，{a}和{b}的来往更多了。",
    "“下次要用，尽管来拿。”{b}对{a}说。",
    "{b}收好{t}，心想{a}真守信用。",
    "好借好还，{a}和{b}都很高兴。",
)
def lend_end(world: World, v: Values) -> None:
    world.close("lend")
    for role, value in v.items():
        world.need(world.facts[role] == value, f"{value} does not fit the ending")


# --- lost: a misses something, asks b who saw it, finds it there


@kind(
    "lost_miss",
    "{a}忽然发现{t}不见了。",
    "{a}找不到自己的{t}了，急得团团转。",
    "“糟了，我的{t}丢了！”{a}叫起来。",
    "{a}很着急，{a:他}的{t}不见了。",
    "{a}想找{t}，可是找来找去都没有。",
    "{a}低头一看，自己的{t}没了。",
)
def lost_miss(world: World, v: Values) -> None:
    world.present(v["a"])
    world.start("lost", "missing", **v)
    world.lying[v["t"]] = ("", "")


@kind(
    "lost_ask",
    "“{b}，{b:你}看见我的{t}了吗？”{a}问。",
    "{a}问：“{b}，有没有看见我的{t}？”",
    "{a}跑去问{b}：“{b:你}见过我的{t}吗？”",
    "“我的{t}丢了，{b}看见没有？”{a}急着问。",
)
def lost_ask(world: World, v: Values) -> None:
    world.step("lost", "missing", "asked", a=v["a"], t=v["t"])
    world.present(v["a"], v["b"])
    world.facts["b"] = v["b"]
    world.question = "lost"


@kind(
    "lost_seen",
    "{b}说：“看见了，{t}就在{p}的{s}。”",
    "“刚才我在{p}的{s}见过{t:一}。”{b}说。",
    "{b}想了想说：“去{p}看看，{s}好像有{t:一}。”",
    "“别急，{t}在{p}呢，就在{s}。”{b}告诉{a}。",
    answers=("lost", "animal"),
)
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


@kind(
    "lost_recall",
    "{a}想起来，刚才去过{p}，{t}也许掉在{s}了。",
    "{a}想了又想，{t}可能落在{p}的{s}了。",
    "“会不会把{t}忘在{p}的{s}了？”{a}想。",
    "{a}记得最后一次用{t}是在{p}的{s}。",
)
def lost_recall(world: World, v: Values) -> None:
    world.step("lost", "missing", "told", a=v["a"], t=v["t"])
    world.need(world.at[v["a"]] != v["p"], f"{v['a']} is at {v['p']} already")
    world.need(v["s"] in lex.PLACES.get(v["p"], (0, 0, (), ()))[2], f"{v['p']} has no {v['s']}")
    world.lying[v["t"]] = (v["p"], v["s"])
    world.anchored.add(v["p"])
    world.facts["p"] = v["p"]


@kind(
    "lost_find",
    "{t}果然在{s}。",
    "{a}一眼看见{t}就在{s}。",
    "{a}找了一圈，在{s}找到了{t}。",
    "真巧，{t:那}还在{s}，{a}松了一口气。",
    "{a}走到{s}，{t}就在那儿。",
)
def lost_find(world: World, v: Values) -> None:
    world.step("lost animal", "told", "found", t=v["t"])
    here = world.present(v.get("a", world.facts["a"]))
    world.need(v.get("a", world.facts["a"]) == world.facts["a"], "somebody else looks for it")
    world.need(world.lying.get(v["t"]) == (here, v["s"]), f"{v['t']} is not at {here}, {v['s']}")


@kind(
    "lost_take",
    "{a}捡起{t}，擦了擦上面的土。",
    "{a}高兴地把{t}收好。",
    "{a}连忙拿起{t}，紧紧抱住。",
    "{a}捧着{t}看了又看，一点儿也没坏。",
    "{a}赶紧把{t}拿在手里。",
)
def lost_take(world: World, v: Values) -> None:
    world.step("lost", "found", "done", a=v["a"], t=v["t"])
    world.present(v["a"])
    del world.lying[v["t"]]
    world.appear(v["t"], v["a"])


@kind(
    "lost_tell",
    "“{t}找到了，多亏了{b}！”{a}说。",
    "{a}对{b}说：“谢谢{b:你}，{t}找到了。”",
    "{a}举着{t}给{b}看：“找到啦！”",
    "{b}看见{t:那}在{a}手里，也替{a:他}高兴。",
)
def lost_tell(world: World, v: Values) -> None:
    world.step("lost", "done", a=v["a"], b=v["b"], t=v["t"])
    world.present(v["a"], v["b"])
    world.has(v["a"], v["t"])


@kind(
    "lost_end",
    "{a}想，以后再也不乱放{t}了。",
    "从那以后，{a}总是把{t}放得好好的。",
    "{a}说：“下次可要看好{t}。”",
    "{t}失而复得，{a}心里别提多高兴了。",
    "这一回，{a}记住了：东西要收好。",
    "{a}带着{t}，心里踏实了。",
)
def lost_end(world: World, v: Values) -> None:
    world.step("lost", "done", **v)
    world.has(v["a"], world.facts["t"])
    world.close("lost")


# --- found: a picks something up, b knows whose it is, a brings it to c


@kind(
    "found_pick",
    "{a}在{s}捡到{t:一}。",
    "{s}有{t:一}，{a}捡了起来。",
    "{a}走到{s}，看见地上有{t:一}，就捡了起来。",
    "“咦，{s}怎么有{t:一}？”{a}把{t:那}捡起来。",
    "{a}低头一看，{s}躺着{t:一}，便拾了起来。",
)
def found_pick(world: World, v: Values) -> None:
    here = world.present(v.get("a", world.actor))
    world.need(v["s"] in lex.PLACES.get(here, (0, 0, (), ()))[2], f"{here} has no {v['s']}")
    world.anchored.add(here)
    world.start("found", "picked", p=here, **v)
    world.appear(v["t"], v["a"])


@kind(
    "found_ask",
    "“{t:这}是谁的？”{a}问{b}。",
    "{a}问：“{b}，{b:你}知道{t:这}是谁的吗？”",
    "{a}拿着{t}问{b}：“是{b:你}丢的吗？”",
    "“{b}，这是{b:你}的{t}吗？”{a}问。",
)
def found_ask(world: World, v: Values) -> None:
    world.step("found", "picked", "asked", a=v["a"], t=v["t"])
    world.present(v["a"], v["b"])
    world.facts["b"] = v["b"]
    world.question = "found"


@kind(
    "found_owner",
    "{b}看了看说：“不是我的，{t}是{c}的。”",
    "“这是{c}的{t}，{c}正到处找呢。”{b}说。",
    "{b}摇摇头：“我没丢东西，{c}倒是丢了{t:一}。”",
    "“{c}说过丢了{t:一}，快给{c}送去吧。”{b}说。",
    answers=("found",),
)
def found_owner(world: World, v: Values) -> None:
    world.step("found", "asked", "known", b=v["b"], t=v["t"])
    world.need(v["c"] not in world.at, f"{v['c']} would be here")
    world.known.add(v["c"])
    world.facts["c"] = v["c"]


@kind(
    "found_go",
    "{a}决定马上把{t}送去。",
    "“我现在就给{c}送去。”{a}说。",
    "{a}心想，{c}一定急坏了。",
    "{a}把{t}小心地装好，准备给{c}送去。",
)
def found_go(world: World, v: Values) -> None:
    world.step("found", "known", **v)
    world.present(v["a"])


@kind(
    "found_give",
    "{a}把{t}还给{c}。",
    "“{c}，这是{c:你}丢的{t}吧？”{a}把{t:那}递过去。",
    "{a}拿出{t:那}，交到{c}手里。",
    "{a}说：“{c}，{t}给{c:你}送来了。”",
    "“这是我捡到的{t}。”{a}说着，把它还给{c}。",
)
def found_give(world: World, v: Values) -> None:
    world.step("found", "known", "done", a=v["a"], c=v["c"], t=v["t"])
    world.give(v["a"], v["c"], v["t"])


@kind("found_joy", "{c}接过{t}，又惊又喜。", "“这正是我的{t}！”{c}高兴得跳了起来。", "{c}一见{t}，眼睛都亮了。")
def found_joy(world: World, v: Values) -> None:
    world.step("found", "done", c=v["c"], t=v["t"])
    world.present(v["c"])


@kind(
    "found_ask_where",
    "{c}问：“{t}是在哪儿捡到的？”",
    "“{a}在哪儿找到{t}的？”{c}问。",
    "“{t}掉在什么地方了？”{c}问{a}。",
)
def found_ask_where(world: World, v: Values) -> None:
    world.step("found", "done", **v)
    world.present(v["c"])
    world.question = "found_where"


@kind(
    "found_where",
    "{a}回答：“就在{p}的{s}。”",
    "“在{p}，{s}。”{a}说。",
    "{a}告诉{c}，是在{p}的{s}捡到的。",
    answers=("found_where",),
)
def found_where(world: World, v: Values) -> None:
    world.step("found", "done", **v)


@kind(
    "found_end",
    "{c}说：“{a}真是个好人！”",
    "{c}非要留{a}喝杯茶不可。",
    "“太谢谢{a:你}了！”{c}拉着{a}的手说。",
    "做了一件好事，{a}心里甜甜的。",
    "后来，{c}逢人就夸{a}。",
    "看着{c}高兴的样子，{a}也笑了。",
)
def found_end(world: World, v: Values) -> None:
    world.step("found", "done", **v)
    world.close("found")


# --- errand: b sends a to buy something


@kind(
    "errand_ask",
    "{b}说：“{a}，去{p}买{t:一}，好吗？”",
    "“{a}，家里没有{t}了，去{p}买{t:一}吧。”{b}说。",
    "{b}对{a}说：“帮我去{p}买{t:一}，行吗？”",
    "“能不能替我到{p}买{t:一}？”{b}问{a}。",
    "{b}想要{t:一}，就请{a}去{p}买。",
)
def errand_ask(world: World, v: Values) -> None:
    world.need(world.present(v["b"], v["a"]) == lex.home(v["b"]), f"{v['b']} is not at home")
    world.need(lex.SOLD_AT.get(v["t"]) == v["p"], f"{v['p']} does not sell {v['t']}")
    world.start("errand", "asked", **v)
    world.question = "errand"


@kind(
    "errand_yes",
    "{a}说：“好，我这就去。”",
    "{a}答应一声，接过了钱。",
    "“没问题！”{a}马上站了起来。",
    "{a}点点头，拿上布袋。",
    "“包在我身上。”{a}拍拍胸口说。",
    answers=("errand",),
)
def errand_yes(world: World, v: Values) -> None:
    world.step("errand", "asked", "buying", a=v["a"])
    world.present(v["a"])


@kind(
    "buy",
    "{a}买了{t:一}。",
    "{a}挑了{t:一}，付了钱。",
    "“老板，我要{t:一}。”{a}说着，把钱递过去，买好了。",
    "{a}问了价钱，买下{t:一}。",
    "店家给{a}拿了{t:一}，收了钱。",
    "{a}排了一会儿队，买到了{t:一}。",
    "{a}仔细挑选，买了最好的{t:一}。",
)
def buy(world: World, v: Values) -> None:
    world.step("errand cook", "buying", "bought", a=v["a"], t=v["t"])
    here = world.present(v["a"])
    world.need(lex.SOLD_AT.get(v["t"]) == here, f"{here} does not sell {v['t']}")
    world.appear(v["t"], v["a"])


@kind(
    "errand_give",
    "{a}把{t}交给{b}。",
    "“{b}，{t}买来了！”{a}说。",
    "{a}把买来的{t}递给{b}。",
    "{a}从布袋里拿出{t}，递到{b}手上。",
    "{b}接过{a}买来的{t}，看了看，很满意。",
)
def errand_give(world: World, v: Values) -> None:
    world.step("errand", "bought", "done", a=v["a"], b=v["b"], t=v["t"])
    world.give(v["a"], v["b"], v["t"])


@kind("errand_check", "“{t}多少钱？”{b}问。", "{b}问：“{p}人多不多？”", "{b}关心地问：“{a}，累不累？”")
def errand_check(world: World, v: Values) -> None:
    world.step("errand", "done", **v)
    world.present(v["b"])
    world.question = "price" if "t" in v else "crowd" if "p" in v else "tired"


@kind("errand_price", "{a}说：“不贵，钱还有剩。”", "“五块钱，这是找的零钱。”{a}回答。", answers=("price",))
@kind("errand_crowd", "{a}说：“人不少，热闹着呢。”", "“今天人不多。”{a}回答。", answers=("crowd",))
@kind("errand_tired", "{a}说：“一点儿也不累。”", "“不累，走走路正好。”{a}笑着回答。", answers=("tired",))
def errand_reply(world: World, v: Values) -> None:
    world.step("errand", "done", a=v["a"])


@kind(
    "errand_end",
    "{b}摸摸{a}的头说：“真能干！”",
    "{b}夸{a}办事又快又好。",
    "“辛苦{a:你}了，留下来吃饭吧。”{b}对{a}说。",
    "{b}笑得合不拢嘴：“多亏有{a}。”",
    "能帮上{b}的忙，{a}很高兴。",
    "{b}给{a}倒了一杯水，连声道谢。",
    "有了{t}，{b}的事就好办了，{a}也高兴。",
)
def errand_end(world: World, v: Values) -> None:
    world.step("errand", "done", **v)
    world.close("errand")


# --- gift: b has a reason to be visited, a brings a present


@kind(
    "gift_reason",
    "{b}{r}，{a}想送{b:他}{t:一}。",
    "{a}听说{b}{r}，准备了{t:一}。",
    "因为{b}{r}，{a}挑了{t:一}，要送给{b:他}。",
    "“{b}{r}，送{t:一}正合适。”{a}想。",
    "{a}知道{b}{r}，就包好{t:一}，想去看{b:他}。",
)
def gift_reason(world: World, v: Values) -> None:
    world.present(v["a"])
    world.need(v["t"] in lex.GIFTS, f"{v['t']} is no gift")
    world.need(v["b"] not in world.at, f"{v['b']} is here already")
    world.known.add(v["b"])
    world.start("gift", "ready", **v)
    world.appear(v["t"], v["a"])


@kind(
    "gift_give",
    "{a}把{t}送给{b}。",
    "“{b}，{t:这}送给{b:你}。”{a}说。",
    "{a}拿出{t}，双手递给{b}。",
    "{a}说：“{b}，看我给{b:你}带什么来了？是{t:一}！”",
    "“送{b:你}{t:一}，希望{b}喜欢。”{a}笑着说。",
)
def gift_give(world: World, v: Values) -> None:
    world.step("gift", "ready", "given", a=v["a"], b=v["b"], t=v["t"])
    world.give(v["a"], v["b"], v["t"])


_WISHES = {
    "今天过生日": ("生日快乐！", "祝{b}生日快乐，天天开心！"),
    "病了": ("祝{b}早日康复！", "好好休息，很快就会好的。"),
    "刚搬了新家": ("新家真漂亮！", "恭喜{b}住进新家！"),
    "前几天帮过大忙": ("上次多亏有{b:你}，{b}。", "上次的事，多谢{b}帮忙！"),
    "好久不见了": ("好久不见，真想念{b}！", "这么久没见，{b}还好吗？"),
}


def _wish(reason: str, wishes: tuple[str, str]) -> None:
    shapes = ("{a}说：“WISH”", "“WISH”{a}对{b}说。", "{a}笑着对{b}说：“WISH”")
    wordings = [shape.replace("WISH", wish) for shape in shapes for wish in wishes]

    @kind(f"wish_{reason}", *wordings)
    def say(world: World, v: Values) -> None:
        world.step("gift", "ready given", **v, r=reason)
        world.present(world.facts["a"], world.facts["b"])


for _reason in lex.REASONS:
    _wish(_reason, _WISHES[_reason])


@kind(
    "gift_joy",
    "{b}接过{t}，高兴极了。",
    "“{t:这}真好，谢谢{a}！”{b}说。",
    "{b}捧着{t}，看了又看。",
    "{b}没想到{a}会送{t}，又惊又喜。",
    "{b}把{t}收下，眼睛笑成了一条缝。",
    "“我正想要{t:一}呢！”{b}高兴地对{a}说。",
)
def gift_joy(world: World, v: Values) -> None:
    world.step("gift", "given", "done", **v)
    world.has(v["b"], v["t"])
    world.present(v["b"])


@kind(
    "gift_tea", "{b}给{a}泡了一杯热茶。", "{b}端出点心，请{a}尝尝。", "{b}留{a}一起吃饭。", "{a}和{b}坐下来聊了很久。"
)
def gift_tea(world: World, v: Values) -> None:
    world.step("gift", "done", **v)
    world.present(v["a"], v["b"])


@kind(
    "gift_end",
    "{a}看到{b}这么高兴，心里也暖暖的。",
    "这一天，{a}和{b}都过得很开心。",
    "{b}说：“有{a}这样的朋友，真好。”",
    "临走时，{b}一直把{a}送到门外。",
    "{b}一直舍不得放下{t}，{a}看着笑了。",
    "礼轻情意重，{b}记住了{a}的好。",
)
def gift_end(world: World, v: Values) -> None:
    world.step("gift", "done", **v)
    world.close("gift")


# --- cook: a lacks one ingredient, buys it or asks a neighbour, cooks, shares with b


@kind(
    "cook_plan",
    "{a}想做{d:一}，家里有{t}，却没有{u}。",
    "{a}要做{d}，{t}有了，就差{u}。",
    "“我来做{d}吧。”{a}找出了{t}，可是缺{u}。",
    "{a}打算做{d}请{b}吃，{t}现成，{u}却用完了。",
    "做{d}要用{t}和{u}，{a}家里只有{t}。",
)
def cook_plan(world: World, v: Values) -> None:
    world.need(world.present(v["a"]) == lex.home(v["a"]), f"{v['a']} is not in the kitchen at home")
    world.need({v["t"], v["u"]} == set(lex.DISHES[v["d"]][1]), f"{v['d']} is not made of {v['t']} and {v['u']}")
    world.start("cook", "buying", a=v["a"], d=v["d"], have=v["t"], t=v["u"], b=v.get("b", ""))
    world.appear(v["t"], v["a"])
    if "b" in v:
        world.known.add(v["b"])


@kind(
    "cook_where",
    "{a}想去{p}买{u}。",
    "{u}可以去{p}买，{a}准备走一趟。",
    "“{p}有{u}卖。”{a}想。",
    "{a}拿上钱，要去{p}买{u:一}。",
)
def cook_where(world: World, v: Values) -> None:
    world.step("cook", "buying", a=v["a"], t=v["u"])
    world.present(v["a"])
    world.need(lex.SOLD_AT.get(v["u"]) == v["p"], f"{v['p']} does not sell {v['u']}")
    world.heading = v["p"]


@kind("cook_neighbour", "{a}想去问{c}要{u:一}。", "{a}想起{c}家里有{u}。", "“{c}家里也许有{u}。”{a}想。")
def cook_neighbour(world: World, v: Values) -> None:
    world.step("cook", "buying", "neighbour", a=v["a"], t=v["u"])
    world.present(v["a"])
    world.need(v["c"] != world.facts["b"], f"{v['c']} is the guest")
    world.known.add(v["c"])
    world.facts["c"] = v["c"]
    world.heading = lex.home(v["c"])
    world.appear(v["u"], v["c"])


@kind(
    "cook_beg",
    "“{c}，能给我{u:一}吗？我要做{d}。”{a}问。",
    "{a}说：“{c}，我做{d}缺{u}，{c:你}家有没有？”",
    "{a}问：“{c}，{c:你}有{u}吗？我想做{d}。”",
)
def cook_beg(world: World, v: Values) -> None:
    world.step("cook", "neighbour", "begged", a=v["a"], t=v["u"], c=v["c"], d=v["d"])
    world.present(v["a"], v["c"])
    world.question = "cook"


@kind(
    "cook_get",
    "“有，拿去吧。”{c}给了{a}{u:一}。",
    "{c}连忙拿出{u:一}，递给{a}。",
    "“正好有{u:一}，送给{a:你}。”{c}把它交给{a}。",
    "{c}二话不说，给{a}拿了{u:一}。",
    answers=("cook",),
)
def cook_get(world: World, v: Values) -> None:
    world.step("cook", "begged", "bought", a=v["a"], t=v["u"], c=v["c"])
    world.give(v["c"], v["a"], v["u"])


@kind(
    "cook_make",
    "{a}用{t}和{u}做好了{d:一}。",
    "{a}系上围裙，用{t}和{u}做成了{d}。",
    "不一会儿，{t}和{u}在{a}手里变成了{d:一}。",
    "有了{t}，又有了{u}，{a}很快做好了{d}。",
    "{a}点火下锅，{t}配{u}，{d:一}做好了。",
)
def cook_make(world: World, v: Values) -> None:
    world.step("cook", "bought", "cooked", a=v["a"], d=v["d"])
    world.need(world.present(v["a"]) == lex.home(v["a"]), f"{v['a']} is not in the kitchen at home")
    world.need({v["t"], v["u"]} == set(lex.DISHES[v["d"]][1]), f"{v['d']} is not made of {v['t']} and {v['u']}")
    world.has(v["a"], v["t"])
    world.has(v["a"], v["u"])


@kind(
    "cook_eat",
    "{b}闻着香味来了，{a}请{b:他}尝{d}。",
    "{a}叫来{b}，请{b:他}一起吃{d}。",
    "{d}刚上桌，{b}就来了，{a}给{b:他}添了一双筷子。",
    "{b}来做客，{a}端上{d}，请{b:他}吃。",
)
def cook_eat(world: World, v: Values) -> None:
    world.step("cook", "cooked", "done", a=v["a"], d=v["d"])
    world.need(world.facts["b"] in ("", v["b"]), f"{world.facts['b']} was to be the guest")
    world.need(v["b"] not in world.at, f"{v['b']} is at {world.at.get(v['b'])}")
    world.introduce(v["b"], world.present(v["a"]))
    world.facts["b"] = v["b"]


@kind(
    "cook_praise",
    "“{d}真香！”{b}连连称赞。",
    "{b}尝了一口{d}，说：“太好吃了！”",
    "{b}吃了一大碗，直夸{d}好吃。",
    "“{a}，这{d}是怎么做的？真好吃。”{b}说。",
)
def cook_praise(world: World, v: Values) -> None:
    world.step("cook", "done", **v)
    world.present(v["b"])


@kind(
    "cook_end",
    "{a}和{b}有说有笑，把{d}吃得干干净净。",
    "{b}说：“下次我来做给{a}吃。”",
    "看{b}吃得这么香，{a}比自己吃了还高兴。",
    "{a}和{b}围着桌子，屋里热气腾腾。",
    "吃完{d}，{b}抢着帮{a}洗碗。",
    "一起吃{d}，{a}和{b}都觉得很幸福。",
)
def cook_end(world: World, v: Values) -> None:
    world.step("cook", "done", **v)
    world.close("cook")


# --- swap: a and b play with each other's toys, then give them back


@kind(
    "swap_have",
    "{a}带着{t:一}，{b}带着{u:一}。",
    "{a}手里有{t:一}，{b}手里有{u:一}。",
    "{a}拿出{t:一}，{b}也拿出{u:一}。",
    "{b}带来了{u:一}，{a}带来了{t:一}。",
)
def swap_have(world: World, v: Values) -> None:
    world.present(v["a"], v["b"])
    world.need(v["t"] in lex.TOYS and v["u"] in lex.TOYS, "nobody swaps those")
    world.start("swap", "have", **v)
    world.appear(v["t"], v["a"])
    world.appear(v["u"], v["b"])


@kind(
    "swap_ask",
    "{a}说：“{b}，我们换着玩好不好？”",
    "“{b}，我想玩{b:你}的{u}，咱们换一换吧。”{a}说。",
    "{a}问：“{b}，用我的{t}换{b:你}的{u}玩一会儿，行吗？”",
    "“{u}真有意思，{b}，我拿{t}跟{b:你}换着玩，好吗？”{a}问。",
)
def swap_ask(world: World, v: Values) -> None:
    world.step("swap", "have", "asked", **v)
    world.present(v["a"], v["b"])
    world.question = "swap"


@kind(
    "swap_yes",
    "“好啊！”{b}把{u}给了{a}，接过{t}。",
    "{b}点点头，用{u}换了{a}的{t}。",
    "{b}正想玩{t}，马上把{u}递给{a}，拿过了{t:那}。",
    "“行。”{b}一手接过{t}，一手把{u}交给{a}。",
    answers=("swap",),
)
def swap_yes(world: World, v: Values) -> None:
    world.step("swap", "asked", "swapped", **v)
    world.give(world.facts["a"], v["b"], v["t"])
    world.holder[v["u"]] = world.facts["a"]


@kind(
    "swap_play_a",
    "{a}拿着{u}，越玩越高兴。",
    "{a}摆弄着{u}，爱不释手。",
    "{u}让{a}玩得入了迷。",
    "{a}捧着{u:那}，乐得直笑。",
)
@kind(
    "swap_play_b", "{b}拿着{t}，越玩越起劲。", "{b}摆弄着{t}，舍不得放下。", "{t}让{b}乐个不停。", "{b}也喜欢上了{t}。"
)
def swap_play(world: World, v: Values) -> None:
    world.step("swap", "swapped", **v)
    world.has(v.get("a") or v["b"], v.get("u") or v["t"])
    world.present(v.get("a") or v["b"])


@kind(
    "swap_back",
    "玩够了，{a}把{u}还给{b}，{b}把{t}还给{a}。",
    "后来，{b}还了{t}，{a}还了{u}。",
    "两人又换了回来，{t}归{a}，{u}归{b}。",
    "{a}拿回{t}，{b}拿回{u}，谁也没弄坏。",
)
def swap_back(world: World, v: Values) -> None:
    world.step("swap", "swapped", "done", **v)
    world.need(world.counts["swap_play_a"] + world.counts["swap_play_b"] > 0, "they swapped and never played")
    world.present(v["a"], v["b"])
    world.holder[v["t"]], world.holder[v["u"]] = v["a"], v["b"]


@kind(
    "swap_end",
    "{a}和{b}说好，下次再一起玩。",
    "“明天还来换着玩！”{b}对{a}说。",
    "{a}和{b}成了更好的朋友。",
    "大家的东西大家玩，{a}和{b}快活极了。",
    "{a}对{b}说：“跟{b:你}一起玩真开心。”",
    "分手的时候，{a}和{b}都舍不得走。",
)
def swap_end(world: World, v: Values) -> None:
    world.step("swap", "done", **v)
    world.close("swap")
