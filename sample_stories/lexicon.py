"""The words of the little world: who lives there, where, with what, and what one does with it.

Everything the checker knows about meaning (which tool serves which work, what is sold where, what a dish is made of)
is here, as plain tables; the sentences are in `wordings.txt`.
"""

from __future__ import annotations

from typing import NamedTuple

YOUNG = ["小明", "小红", "小刚", "阿梅", "阿福", "丽丽", "冬冬", "小芳", "豆豆", "小军", "小兰", "乐乐"]
ELDERS = ["王爷爷", "李奶奶", "张叔叔", "陈阿姨", "赵大爷", "孙婆婆", "周老师", "刘师傅"]
PEOPLE = [*YOUNG, *ELDERS]
WOMEN = ["小红", "阿梅", "丽丽", "小芳", "小兰", "李奶奶", "陈阿姨", "孙婆婆", "周老师"]

TIMES = ["早上", "上午", "中午", "下午", "傍晚", "晚上"]
TOMORROW = ["明天早上", "明天上午", "明天下午"]

SKIES = {
    "晴": ["天气晴朗", "阳光很好", "天很蓝", "太阳暖洋洋的"],
    "阴": ["天阴阴的", "天上云很多", "没有太阳"],
    "雨": ["外面下着雨", "雨下个不停", "窗外雨声沙沙"],
    "雪": ["外面下着雪", "雪花飘个不停", "屋顶上积了雪，雪还在下"],
}
SKY_OF = {sky: weather for weather, skies in SKIES.items() for sky in skies}
FAIR = ("晴", "阴")


class Place(NamedTuple):
    """Whether it has a roof, what people do there, spots where a thing may lie, what one sees there."""

    indoors: bool
    acts: list[str]
    spots: list[str]
    scenes: list[str]


class Tool(NamedTuple):
    """How it is counted, the work that it is for, where that is done, what comes of it."""

    measure: str
    work: str
    places: list[str]
    results: list[str]


class Dish(NamedTuple):
    """How it is counted, and what it is made of."""

    measure: str
    ingredients: list[str]


def _rows(table: str) -> list[list[str]]:
    """Return the rows of a table whose columns are set off by bars."""
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def _counted(words: str) -> dict[str, str]:
    """Return the measure word of each thing, which stands in front of it."""
    return {word[1:]: word[0] for word in words.split()}


PLACES = {
    name: Place(roof == "屋里", acts.split(), spots.split(), scenes.split())
    for name, roof, acts, spots, scenes in _rows("""
        河边 | 露天 | 洗衣服 看鸭子 捡石子 | 大石头旁 柳树下 芦苇丛里 | 河水哗哗地流着 几条小鱼在水里游来游去
        公园 | 露天 | 打太极拳 踢毽子 散步 | 长椅下面 草地上 亭子里 | 花坛里的月季开得正艳 湖面上有几只小船
        图书馆 | 屋里 | 看书 查资料 整理书架 | 书架旁 窗台上 借书台边 | 大厅里静悄悄的 屋里只听见翻书的声音
        学校 | 屋里 | 写作业 背课文 打扫教室 | 教室里 走廊里 楼梯口 | 墙上贴着大家的画 教室里传来读书声
        菜市场 | 屋里 | 买菜 挑西瓜 卖青菜 | 菜摊旁 肉摊前面 大秤旁边 | 到处是叫卖的声音 摊子上的菜水灵灵的
        村口 | 露天 | 等车 乘凉 聊天 | 老槐树下 石磨旁 路牌下 | 老槐树的影子落在地上 几只麻雀在路上跳来跳去
        菜园 | 露天 | 拔草 摘黄瓜 搭豆架 | 黄瓜架下 篱笆旁 菜地里 | 白菜长得绿油油的 一只蜜蜂绕着南瓜花飞
        果园 | 露天 | 剪树枝 摘桃子 给果树施肥 | 梨树下 草棚里 果筐旁边 | 枝头挂满了果子 空气里有果子的香味
        茶馆 | 屋里 | 喝茶 听评书 嗑瓜子 | 方桌底下 柜台上 屏风后面 | 铜壶里的水咕嘟咕嘟地响 屋里飘着茶香
        操场 | 露天 | 跑步 做操 看球赛 | 跑道旁 旗杆下 看台上 | 红旗在旗杆上飘着 跑道上有几个孩子在比赛
        树林 | 露天 | 捡松果 听鸟叫 拾柴 | 松树下 树桩旁 小溪边 | 啄木鸟笃笃地敲着树干 小路上铺满了落叶
        山坡 | 露天 | 放羊 割草 摘野花 | 草丛里 野花丛中 土堆旁 | 野花开了一大片 远处的村子看得清清楚楚
        杂货店 | 屋里 | 挑东西 理货 看店 | 货架旁 门槛边 | 货架摆得整整齐齐 柜台上放着一把算盘
        面包店 | 屋里 | 揉面 烤面包 擦柜台 | 面粉袋旁 玻璃柜前面 | 烤炉里飘出香味 玻璃柜擦得亮亮的
    """)
}
HOME_ACTS = ["扫地", "擦桌子", "洗碗", "练毛笔字", "听收音机", "浇花", "叠衣服", "补袜子", "修椅子", "剥豆子"]
ILL_ACTS = ["躺着休息", "喝药"]
HOMES = {person + "家": person for person in PEOPLE}
ACTS = sorted({act for place in PLACES.values() for act in place.acts} | set(HOME_ACTS) | set(ILL_ACTS))
SPOTS = sorted({spot for place in PLACES.values() for spot in place.spots})
SCENES = {scene: name for name, place in PLACES.items() for scene in place.scenes}
SEARCHABLE = [name for name in PLACES if name not in ("杂货店", "面包店")]
OUTDOORS = [name for name, place in PLACES.items() if not place.indoors]

TOOLS = {
    name: Tool(measure, work, places.split(), results.split())
    for name, measure, work, places, results in _rows("""
        锄头 | 把 | 松土 | 菜园 果园 | 把土松了一遍 锄完了两块地
        鱼竿 | 根 | 钓鱼 | 河边 | 钓到一条大鲤鱼 钓上来三条鲫鱼
        梯子 | 架 | 摘梨 | 果园 | 摘了满满一筐梨 摘下了最高处的梨
        竹篮 | 个 | 采蘑菇 | 树林 山坡 | 装了半篮蘑菇 装回了又大又白的蘑菇
        画笔 | 盒 | 画画 | 河边 公园 山坡 | 画了一幅风景画 画出了一道美丽的彩霞
        照相机 | 台 | 拍照 | 公园 树林 村口 | 拍了十几张照片 拍下了一只停在枝头的喜鹊
        网兜 | 个 | 捉蝴蝶 | 公园 山坡 | 捉到一只花蝴蝶 捉了两只白蝴蝶，又放走了
        望远镜 | 架 | 看鸟 | 树林 河边 | 看到了一窝小鸟 看清了白鹭的样子
        喷壶 | 个 | 浇菜 | 菜园 | 把菜浇了一遍 浇完了所有的菜苗
    """)
}
WORKS = {tool.work: name for name, tool in TOOLS.items()}
RESULTS = {result: name for name, tool in TOOLS.items() for result in tool.results}

BELONGINGS = _counted("串钥匙 顶帽子 条围巾 副手套 本故事书 支口琴 个皮球 块手表 个钱包 个水壶")
TOYS = _counted("本故事书 本画册 只风筝 个皮球 支口琴 副象棋 个陀螺")
GIFTS = _counted("条围巾 顶帽子 副手套 本画册 支口琴 束鲜花 袋苹果 个蛋糕 罐茶叶")
ANIMALS = _counted("只小猫 只小狗 只小羊 只母鸡 只鸭子 只兔子")
GOODS = _counted(
    "棵白菜 块豆腐 条鱼 篮鸡蛋 个南瓜 袋番茄 包盐 瓶酱油 袋面粉 包白糖 袋大米 支铅笔 块肥皂 个面包 个蛋糕 瓶牛奶"
)
PLANTING = _counted("把铁锹 只水桶")
MEASURES = {name: tool.measure for name, tool in TOOLS.items()} | BELONGINGS | TOYS | GIFTS | ANIMALS | GOODS
MEASURES |= PLANTING | {"伞": "把"}

SELLS = {
    "菜市场": ["白菜", "豆腐", "鱼", "鸡蛋", "南瓜", "番茄"],
    "杂货店": ["盐", "酱油", "面粉", "白糖", "大米", "铅笔", "肥皂"],
    "面包店": ["面包", "蛋糕", "牛奶"],
}
SOLD_AT = {good: place for place, goods in SELLS.items() for good in goods}
DISHES = {
    name: Dish(measure, ingredients.split())
    for name, measure, ingredients in _rows("""
        番茄炒蛋 | 盘 | 番茄 鸡蛋
        白菜饺子 | 锅 | 白菜 面粉
        豆腐鱼汤 | 锅 | 豆腐 鱼
        南瓜饼 | 盘 | 南瓜 面粉
        鸡蛋饼 | 盘 | 鸡蛋 面粉
        糖醋鱼 | 盘 | 鱼 白糖
        南瓜粥 | 锅 | 南瓜 大米
        牛奶蛋羹 | 碗 | 牛奶 鸡蛋
    """)
}
TREES = ["桃树", "柳树", "枣树", "梨树", "杏树", "松树"]
REASONS = ["今天过生日", "病了", "刚搬了新家", "前几天帮过大忙", "好久不见了"]


def pronoun(person: str) -> str:
    """Return how a sentence goes on about a person."""
    return "她" if person in WOMEN else "他"


def address(person: str) -> str:
    """Return how a person is spoken to."""
    return "你" if person in YOUNG else "您"


def home(person: str) -> str:
    """Return the place where a person lives."""
    return person + "家"


def indoors(place: str) -> bool:
    """Return whether one is dry there when it rains."""
    return place in HOMES or (place in PLACES and PLACES[place].indoors)


def acts_at(place: str) -> list[str]:
    """Return what people may be found doing at a place."""
    if place in HOMES:
        return HOME_ACTS
    return PLACES[place].acts if place in PLACES else []  # somebody on the road (路上) is at no place
