"""The words of the little world: who lives there, where, with what, and what one does with it.

Everything the checker knows about meaning (which tool serves which work, what is sold where, what a dish is made of)
is here, as plain tables; the sentences are in `kinds_*.py`.
"""

from __future__ import annotations

PEOPLE: dict[str, tuple[str, str]] = {  # name -> (pronoun, how one addresses them)
    "小明": ("他", "你"),
    "小红": ("她", "你"),
    "小刚": ("他", "你"),
    "阿梅": ("她", "你"),
    "阿福": ("他", "你"),
    "丽丽": ("她", "你"),
    "冬冬": ("他", "你"),
    "小芳": ("她", "你"),
    "豆豆": ("他", "你"),
    "小军": ("他", "你"),
    "小兰": ("她", "你"),
    "乐乐": ("他", "你"),
    "王爷爷": ("他", "您"),
    "李奶奶": ("她", "您"),
    "张叔叔": ("他", "您"),
    "陈阿姨": ("她", "您"),
    "赵大爷": ("他", "您"),
    "孙婆婆": ("她", "您"),
    "周老师": ("她", "您"),
    "刘师傅": ("他", "您"),
}
YOUNG = [name for name, (_, address) in PEOPLE.items() if address == "你"]
ELDERS = [name for name in PEOPLE if name not in YOUNG]

TIMES = ["早上", "上午", "中午", "下午", "傍晚", "晚上"]
TOMORROW = ["明天早上", "明天上午", "明天下午"]

SKIES: dict[str, list[str]] = {
    "晴": ["天气晴朗", "阳光很好", "天很蓝", "太阳暖洋洋的"],
    "阴": ["天阴阴的", "天上云很多", "没有太阳"],
    "雨": ["外面下着雨", "雨下个不停", "窗外雨声沙沙"],
    "雪": ["外面下着雪", "雪花飘个不停", "屋顶上积了雪，雪还在下"],
}
SKY_OF = {surface: weather for weather, surfaces in SKIES.items() for surface in surfaces}
FAIR = ("晴", "阴")

# place -> (indoors, what people do there, spots where a thing may lie, what one sees there)
PLACES: dict[str, tuple[bool, list[str], list[str], list[str]]] = {
    "河边": (
        False,
        ["洗衣服", "看鸭子", "捡石子"],
        ["大石头旁", "柳树下", "芦苇丛里"],
        ["河水哗哗地流着", "几条小鱼在水里游来游去"],
    ),
    "公园": (
        False,
        ["打太极拳", "踢毽子", "散步"],
        ["长椅下面", "草地上", "亭子里"],
        ["花坛里的月季开得正艳", "湖面上有几只小船"],
    ),
    "图书馆": (
        True,
        ["看书", "查资料", "整理书架"],
        ["书架旁", "窗台上", "借书台边"],
        ["大厅里静悄悄的", "屋里只听见翻书的声音"],
    ),
    "学校": (
        True,
        ["写作业", "背课文", "打扫教室"],
        ["教室里", "走廊里", "楼梯口"],
        ["墙上贴着大家的画", "教室里传来读书声"],
    ),
    "菜市场": (
        True,
        ["买菜", "挑西瓜", "卖青菜"],
        ["菜摊旁", "肉摊前面", "大秤旁边"],
        ["到处是叫卖的声音", "摊子上的菜水灵灵的"],
    ),
    "村口": (
        False,
        ["等车", "乘凉", "聊天"],
        ["老槐树下", "石磨旁", "路牌下"],
        ["老槐树的影子落在地上", "几只麻雀在路上跳来跳去"],
    ),
    "菜园": (
        False,
        ["拔草", "摘黄瓜", "搭豆架"],
        ["黄瓜架下", "篱笆旁", "菜地里"],
        ["白菜长得绿油油的", "一只蜜蜂绕着南瓜花飞"],
    ),
    "果园": (
        False,
        ["剪树枝", "摘桃子", "给果树施肥"],
        ["梨树下", "草棚里", "果筐旁边"],
        ["枝头挂满了果子", "空气里有果子的香味"],
    ),
    "茶馆": (
        True,
        ["喝茶", "听评书", "嗑瓜子"],
        ["方桌底下", "柜台上", "屏风后面"],
        ["铜壶里的水咕嘟咕嘟地响", "屋里飘着茶香"],
    ),
    "操场": (
        False,
        ["跑步", "做操", "看球赛"],
        ["跑道旁", "旗杆下", "看台上"],
        ["红旗在旗杆上飘着", "跑道上有几个孩子在比赛"],
    ),
    "树林": (
        False,
        ["捡松果", "听鸟叫", "拾柴"],
        ["松树下", "树桩旁", "小溪边"],
        ["啄木鸟笃笃地敲着树干", "小路上铺满了落叶"],
    ),
    "山坡": (
        False,
        ["放羊", "割草", "摘野花"],
        ["草丛里", "野花丛中", "土堆旁"],
        ["野花开了一大片", "远处的村子看得清清楚楚"],
    ),
    "杂货店": (True, ["挑东西", "理货", "看店"], ["货架旁", "门槛边"], ["货架摆得整整齐齐", "柜台上放着一把算盘"]),
    "面包店": (True, ["揉面", "烤面包", "擦柜台"], ["面粉袋旁", "玻璃柜前面"], ["烤炉里飘出香味", "玻璃柜擦得亮亮的"]),
}
HOME_ACTS = ["扫地", "擦桌子", "洗碗", "练毛笔字", "听收音机", "浇花", "叠衣服", "补袜子", "修椅子", "剥豆子"]
ILL_ACTS = ["躺着休息", "喝药"]
HOMES = {person + "家": person for person in PEOPLE}
ACTS = sorted({act for row in PLACES.values() for act in row[1]} | set(HOME_ACTS) | set(ILL_ACTS))
SPOTS = sorted({spot for row in PLACES.values() for spot in row[2]})
SCENES = {scene: place for place, row in PLACES.items() for scene in row[3]}
SEARCHABLE = [place for place in PLACES if place not in ("杂货店", "面包店")]
OUTDOORS = [place for place, row in PLACES.items() if not row[0]]

# tool -> (measure word, the work it is for, where that is done, what comes of it)
TOOLS: dict[str, tuple[str, str, list[str], list[str]]] = {
    "锄头": ("把", "松土", ["菜园", "果园"], ["把土松了一遍", "锄完了两块地"]),
    "鱼竿": ("根", "钓鱼", ["河边"], ["钓到一条大鲤鱼", "钓上来三条鲫鱼"]),
    "梯子": ("架", "摘梨", ["果园"], ["摘了满满一筐梨", "摘下了最高处的梨"]),
    "竹篮": ("个", "采蘑菇", ["树林", "山坡"], ["装了半篮蘑菇", "装回了又大又白的蘑菇"]),
    "画笔": ("盒", "画画", ["河边", "公园", "山坡"], ["画了一幅风景画", "画出了一道美丽的彩霞"]),
    "照相机": ("台", "拍照", ["公园", "树林", "村口"], ["拍了十几张照片", "拍下了一只停在枝头的喜鹊"]),
    "网兜": ("个", "捉蝴蝶", ["公园", "山坡"], ["捉到一只花蝴蝶", "捉了两只白蝴蝶，又放走了"]),
    "望远镜": ("架", "看鸟", ["树林", "河边"], ["看到了一窝小鸟", "看清了白鹭的样子"]),
    "喷壶": ("个", "浇菜", ["菜园"], ["把菜浇了一遍", "浇完了所有的菜苗"]),
}
WORKS = {row[1]: tool for tool, row in TOOLS.items()}
RESULTS = {result: tool for tool, row in TOOLS.items() for result in row[3]}

BELONGINGS = {
    "钥匙": "串",
    "帽子": "顶",
    "围巾": "条",
    "手套": "副",
    "故事书": "本",
    "口琴": "支",
    "皮球": "个",
    "手表": "块",
    "钱包": "个",
    "水壶": "个",
}
TOYS = {"故事书": "本", "画册": "本", "风筝": "只", "皮球": "个", "口琴": "支", "象棋": "副", "陀螺": "个"}
GIFTS = {
    "围巾": "条",
    "帽子": "顶",
    "手套": "副",
    "画册": "本",
    "口琴": "支",
    "鲜花": "束",
    "苹果": "袋",
    "蛋糕": "个",
    "茶叶": "罐",
}
ANIMALS = {"小猫": "只", "小狗": "只", "小羊": "只", "母鸡": "只", "鸭子": "只", "兔子": "只"}
GOODS = {
    "白菜": "棵",
    "豆腐": "块",
    "鱼": "条",
    "鸡蛋": "篮",
    "南瓜": "个",
    "番茄": "袋",
    "盐": "包",
    "酱油": "瓶",
    "面粉": "袋",
    "白糖": "包",
    "大米": "袋",
    "铅笔": "支",
    "肥皂": "块",
    "面包": "个",
    "蛋糕": "个",
    "牛奶": "瓶",
}
PLANTING = {"铁锹": "把", "水桶": "只"}
MEASURES: dict[str, str] = {
    **{tool: row[0] for tool, row in TOOLS.items()},
    **BELONGINGS,
    **TOYS,
    **GIFTS,
    **ANIMALS,
    **GOODS,
    **PLANTING,
    "伞": "把",
}

SELLS: dict[str, list[str]] = {
    "菜市场": ["白菜", "豆腐", "鱼", "鸡蛋", "南瓜", "番茄"],
    "杂货店": ["盐", "酱油", "面粉", "白糖", "大米", "铅笔", "肥皂"],
    "面包店": ["面包", "蛋糕", "牛奶"],
}
SOLD_AT = {good: place for place, goods in SELLS.items() for good in goods}
DISHES: dict[str, tuple[str, tuple[str, str]]] = {
    "番茄炒蛋": ("盘", ("番茄", "鸡蛋")),
    "白菜饺子": ("锅", ("白菜", "面粉")),
    "豆腐鱼汤": ("锅", ("豆腐", "鱼")),
    "南瓜饼": ("盘", ("南瓜", "面粉")),
    "鸡蛋饼": ("盘", ("鸡蛋", "面粉")),
    "糖醋鱼": ("盘", ("鱼", "白糖")),
    "南瓜粥": ("锅", ("南瓜", "大米")),
    "牛奶蛋羹": ("碗", ("牛奶", "鸡蛋")),
}
TREES = ["桃树", "柳树", "枣树", "梨树", "杏树", "松树"]
REASONS = ["今天过生日", "病了", "刚搬了新家", "前几天帮过大忙", "好久不见了"]


def home(person: str) -> str:
    """Return the place where a person lives."""
    return person + "家"


def indoors(place: str) -> bool:
    """Return whether one is dry there when it rains."""
    return place in HOMES or (place in PLACES and PLACES[place][0])


def acts_at(place: str) -> list[str]:
    """Return what people may be found doing at a place."""
    if place in HOMES:
        return HOME_ACTS
    return PLACES[place][1] if place in PLACES else []  # somebody on the road (路上) is at no place
