"""Every word that the diagnosis needs exists in both languages and takes the same values."""

import inspect
import re
import string

import pytest

from diagnosis import diagnosis, rules
from diagnosis.report import terminal
from diagnosis.report.messages import LANGUAGES, WORDS, Words
from diagnosis.report.terminal import WIDTH, _columns, _wrapped

CAUSES = (
    "not_learning",
    "undertrained",
    "overfitted",
    "duplicates",
    "repetitive_data",
    "router_collapsed",
    "decoding",
    "targets_shifted",
    "future_leak",
    "padding_in_loss",
    "rate_too_low",
    "rate_too_high",
    "no_warmup",
    "gradients_kept",
    "low_precision_weights",
    "embedding_scale",
    "evaluation_differs",
    "other_text",
    "diverged",
)


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("key", WORDS)
def test_both_languages_take_the_same_values(key):
    english, chinese = WORDS[key]
    assert english and chinese
    assert fields(english) == fields(chinese)
    assert not re.search(r"[\u4e00-\u9fff]", english)


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_a_title_and_a_next_step(cause):
    for language in LANGUAGES:
        words = Words(language)
        assert words(cause) and words(f"{cause}_next", settings="...")


def test_every_word_that_the_code_names_exists():
    code = "".join(inspect.getsource(module) for module in (rules, diagnosis, terminal))
    named = set(re.findall(r'words\("([a-z_0-9]+)"', code)) | set(re.findall(r'\(\("([a-z_]+)", \{', code))
    named |= set(re.findall(r'\[\("([a-z_]+)", ', code)) | set(re.findall(r'Cause\(\s*"([a-z_]+)"', code))
    assert len(named) > 40
    assert named <= set(WORDS)


def test_every_cause_id_is_one_of_the_known():
    code = inspect.getsource(rules)
    assert set(re.findall(r'Cause\(\s*"([a-z_]+)"', code)) == set(CAUSES)


def test_a_line_in_chinese_keeps_latin_words_whole():
    text = "打开负载均衡损失重新训练，" * 3 + "或者不用专家层（--use_moe false）。"
    for blanks in range(40):
        lines = _wrapped(" " * blanks + text, "")
        assert any("--use_moe" in line for line in lines) and any("false" in line for line in lines)
        assert all(_columns(line) <= WIDTH + 2 for line in lines)
    assert max(map(_columns, _wrapped("长" + "a" * 500, ""))) <= WIDTH
