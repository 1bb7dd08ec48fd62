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
from corpus.formats.encodings import frequent_han

_SCRIPT_NAMES = "han latin digit punctuation space kana hangul cyrillic greek arabic other"
SCRIPTS = tuple(_SCRIPT_NAMES.split())
# Han characters that are written differently in the two standards.
FORMS: tuple[str, ...] = ("traditional", "simplified")

# Letters in these ranges; all that is no letter, digit, mark of punctuation, symbol or space is "other".
_RANGES = {
    "han": "2E80-2FDF 3005-3007 3021-3029 3400-4DBF 4E00-9FFF F900-FAFF 20000-3FFFF",
    "kana": "3041-3096 309D-309F 30A1-30FA 30FC-30FF 31F0-31FF FF66-FF9D",
    "hangul": "1100-11FF 3130-318F A960-A97F AC00-D7FF",
    "latin": "41-5A 61-7A AA-AA BA-BA C0-D6 D8-F6 F8-2AF 1E00-1EFF FF21-FF3A FF41-FF5A",
    "cyrillic": "400-52F 1C80-1C8F",
    "greek": "370-373 376-37D 386-386 388-3FF 1F00-1FFF",
    "arabic": "620-65F 66E-6D3 6FA-6FF 750-77F",
}
_BY_CATEGORY = {"N": "digit", "P": "punctuation", "S": "punctuation", "Z": "space"}
_UNKNOWN = 0xFF
_TABLED = 0x20000  # categories are looked up below this; above lie rare Han characters and little else
# A Han character, a kana or a Korean syllable says about what three letters of an alphabet say.
_LETTERS_EACH = {"han": 3, "kana": 3, "hangul": 3}
_KANA_OF_JAPANESE = 0.1  # Japanese text is a third to a half kana; Chinese text quotes one here and there
_LANGUAGE_OF_SCRIPT = {"kana": "ja", "hangul": "ko"}


def count_scripts(texts: Sequence[str]) -> np.ndarray:
    """Count characters: int64 (len(texts), len(SCRIPTS) + len(FORMS)); the forms count Han characters once more."""
    width = len(SCRIPTS) + len(FORMS)
    columns = look_up(_table(), code_points(texts), _UNKNOWN, _column_by_category)
    counts = np.bincount(owners(texts) * width + columns, minlength=len(texts) * width).reshape(len(texts), width)
    counts[:, SCRIPTS.index("han")] += counts[:, len(SCRIPTS) :].sum(axis=1)
    return counts


def languages(counts: np.ndarray) -> Counter[str]:
    """Count texts by language, from the rows of `count_scripts`; only what scripts can tell.

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


def _column_by_category(point: int) -> int:
    return SCRIPTS.index(_BY_CATEGORY.get(unicodedata.category(chr(point))[0], "other"))


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """Map code points to columns; a Han character with two forms has that of its form alone.

    _UNKNOWN stands where the category decides, which is looked up when a text has such a character.
    """
    column = {name: i for i, name in enumerate((*SCRIPTS, *FORMS))}
    table = np.full(0x110000, column["other"], dtype=np.uint8)
    table[:_TABLED] = _UNKNOWN
    table[[ord(control) for control in "\t\n\v\f\r\x85"]] = column["space"]
    for name, ranges in _RANGES.items():
        for first, last in (part.split("-") for part in ranges.split()):
            table[int(first, 16) : int(last, 16) + 1] = column[name]
    # The frequent characters of each national standard that the other standard does without.
    for form, standard, other in (("traditional", "big5", "gb2312"), ("simplified", "gb2312", "big5")):
        alone = (c for c in frequent_han(standard) if "\u4e00" <= c <= "\u9fff" and not c.encode(other, "ignore"))
        table[list(map(ord, alone))] = column[form]
    return table
