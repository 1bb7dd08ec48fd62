"""Which scripts a text is written in, and from that its language as far as a script can tell.

Characters are told apart by Unicode block and category, with one look-up a character, so that a corpus of gigabytes can
be counted while it is packed.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from corpus.cleaning.normalization import code_points, look_up, owners

SCRIPTS = ("han", "latin", "digit", "punctuation", "space", "kana", "hangul", "cyrillic", "greek", "arabic", "other")
# Han characters that are written differently in the two standards.
FORMS = ("traditional", "simplified")

# Letters in these ranges; all that is no letter, digit, mark of punctuation, symbol or space is "other".
_RANGES = {
    "han": (
        (0x2E80, 0x2FDF),
        (0x3005, 0x3007),
        (0x3021, 0x3029),
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x3FFFF),
    ),
    "kana": (
        (0x3041, 0x3096),
        (0x309D, 0x309F),
        (0x30A1, 0x30FA),
        (0x30FC, 0x30FF),
        (0x31F0, 0x31FF),
        (0xFF66, 0xFF9D),
    ),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "latin": (
        (0x41, 0x5A),
        (0x61, 0x7A),
        (0xAA, 0xAA),
        (0xBA, 0xBA),
        (0xC0, 0xD6),
        (0xD8, 0xF6),
        (0xF8, 0x2AF),
        (0x1E00, 0x1EFF),
        (0xFF21, 0xFF3A),
        (0xFF41, 0xFF5A),
    ),
    "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F)),
    "greek": ((0x370, 0x373), (0x376, 0x37D), (0x386, 0x386), (0x388, 0x3FF), (0x1F00, 0x1FFF)),
    "arabic": ((0x620, 0x65F), (0x66E, 0x6D3), (0x6FA, 0x6FF), (0x750, 0x77F)),
}
_BY_CATEGORY = {"N": "digit", "P": "punctuation", "S": "punctuation", "Z": "space"}
_UNKNOWN = 0xFF
_TABLED = 0x20000  # categories are looked up below this; above lie rare Han characters and little else
# A Han character, a kana or a Korean syllable says about what three letters of an alphabet say.
_LETTERS_EACH = {"han": 3, "kana": 3, "hangul": 3}
_KANA_OF_JAPANESE = 0.1  # Japanese text is a third to a half kana; Chinese text quotes one here and there
_LANGUAGE_OF_SCRIPT = {"kana": "ja", "hangul": "ko"}


def count_scripts(texts: Sequence[str]) -> np.ndarray:
    """Characters by text: int64 (len(texts), len(SCRIPTS) + len(FORMS)); the forms count Han characters once more."""
    width = len(SCRIPTS) + len(FORMS)
    cells = owners(texts) * width + _places(code_points(texts))
    counts = np.bincount(cells, minlength=len(texts) * width).reshape(len(texts), width)
    counts[:, SCRIPTS.index("han")] += counts[:, len(SCRIPTS) :].sum(axis=1)
    return counts


def languages(counts: np.ndarray) -> Counter[str]:
    """Texts by language, from the rows of `count_scripts`; only what scripts can tell.

    The script with the most letters decides, a Han character, kana or hangul counting as three: kana in a tenth of
    the Han and kana means "ja"; other Han text is "zh-Hant" or "zh-Hans" by the form that more of its characters have,
    "zh" where none or as many tell. Scripts of many languages keep their own name ("latin"); "none" has no letters.
    """
    column = dict(zip((*SCRIPTS, *FORMS), counts.T, strict=True))
    letters = {script: column[script] * _LETTERS_EACH.get(script, 1) for script in _RANGES}
    japanese = (column["kana"] > 0) & (column["kana"] >= _KANA_OF_JAPANESE * (column["han"] + column["kana"]))
    letters["kana"] = np.where(japanese, letters["kana"] + letters["han"], letters["kana"])
    letters["han"] = np.where(japanese, 0, letters["han"])
    most = np.stack(list(letters.values())).argmax(axis=0)  # the first of those that are level
    names = np.array([_LANGUAGE_OF_SCRIPT.get(script, script) for script in letters], dtype=object)[most]
    forms = column["traditional"] - column["simplified"]
    chinese = np.select([forms > 0, forms < 0], ["zh-Hant", "zh-Hans"], "zh")
    names = np.where(most == list(letters).index("han"), chinese, names)
    lettered = sum(letters.values()) > 0
    return Counter(np.where(lettered, names, "none").tolist())


def _places(points: np.ndarray) -> np.ndarray:
    """Of every code point its place in SCRIPTS + FORMS; of a Han character with two forms that of its form alone."""
    return look_up(_table(), points, _UNKNOWN, _place_by_category)


def _place_by_category(point: int) -> int:
    return SCRIPTS.index(_BY_CATEGORY.get(unicodedata.category(chr(point))[0], "other"))


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """By code point its place, or _UNKNOWN where the category decides, which is looked up when a text has it."""
    place = {name: i for i, name in enumerate((*SCRIPTS, *FORMS))}
    table = np.full(0x110000, place["other"], dtype=np.uint8)
    table[:_TABLED] = _UNKNOWN
    table[[ord(control) for control in "\t\n\v\f\r\x85"]] = place["space"]
    for name, ranges in _RANGES.items():
        for first, last in ranges:
            table[first : last + 1] = place[name]
    # The frequent characters of each national standard (level 1) that the other standard does without.
    table[_standard("big5", 0xA4, 0xC6, lacking="gb2312")] = place["traditional"]
    table[_standard("gb2312", 0xB0, 0xD7, lacking="big5")] = place["simplified"]
    return table


def _standard(codec: str, first: int, last: int, *, lacking: str) -> list[int]:
    """Code points of the Han characters with lead bytes `first` to `last` in one standard that another lacks."""
    pairs = (bytes((lead, trail)) for lead in range(first, last + 1) for trail in range(0x40, 0xFF))
    characters = (pair.decode(codec, "ignore") for pair in pairs)
    return [ord(c) for c in characters if len(c) == 1 and "\u4e00" <= c <= "\u9fff" and not c.encode(lacking, "ignore")]
