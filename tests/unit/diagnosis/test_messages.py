"""Every text that the diagnosis needs exists in both languages and takes the same values."""

import inspect
import re
import string

import pytest

from diagnosis import diagnosis, inputs, result
from diagnosis.report import terminal
from diagnosis.report.messages import LANGUAGES, Messages
from diagnosis.report.terminal import WIDTH, columns, wrap
from diagnosis.rules import data, optimization, targets, verdict

RULES = "".join(inspect.getsource(module) for module in (targets, optimization, data, verdict))
CAUSES = set(re.findall(r'Cause\(\s*"([a-z_]+)"', RULES))
ENGLISH, CHINESE = (Messages(language).texts for language in LANGUAGES)


def fields(text):
    return sorted((name, format_) for _, name, format_, _ in string.Formatter().parse(text) if name is not None)


def test_both_languages_have_the_same_texts():
    assert list(ENGLISH) == list(CHINESE)


@pytest.mark.parametrize("key", ENGLISH)
def test_both_languages_take_the_same_values(key):
    english, chinese = ENGLISH[key], CHINESE[key]
    assert english and chinese
    assert fields(english) == fields(chinese)
    assert not re.search(r"[\u4e00-\u9fff]", english)


def test_the_causes_are_those_of_the_rules():
    assert len(CAUSES) == 21
    assert {key.split(".")[1] for key in ENGLISH if key.startswith("causes.")} == CAUSES
    for cause in CAUSES:
        assert f"causes.{cause}.title" in ENGLISH and f"causes.{cause}.next" in ENGLISH


def test_the_reasons_are_those_of_the_rules():
    reasons = [key.removeprefix("reasons.") for key in ENGLISH if key.startswith("reasons.")]
    assert [reason for reason in reasons if not re.search(rf'"{reason}"', RULES)] == []
    named = set(re.findall(r'(?:\{|reasons\[)"([a-z_]+)"(?:\]|: \{)', RULES))
    assert len(named) > 25
    assert named <= set(reasons)


def test_every_text_that_the_code_names_exists():
    code = "".join(inspect.getsource(module) for module in (diagnosis, inputs, result, terminal))
    named = set(re.findall(r'(?:messages|texts)\("([a-z_.0-9]+)"', code))
    named |= {f"notes.{key}" for key in re.findall(r'\.note\("([a-z_]+)"', code)}
    named |= {f"progress.{key}" for key in re.findall(r'\.progress\("([a-z_]+)"', code)}
    assert len(named) > 25
    assert named <= set(ENGLISH)


def test_a_line_in_chinese_keeps_latin_words_whole():
    text = "打开负载均衡损失重新训练，" * 3 + "或者不用专家层（--use_moe false）。"
    for blanks in range(40):
        lines = wrap(" " * blanks + text)
        assert any("--use_moe" in line for line in lines) and any("false" in line for line in lines)
        assert all(columns(line) <= WIDTH + 2 for line in lines)
    assert max(map(columns, wrap("长" + "a" * 500))) <= WIDTH


def test_a_line_in_chinese_begins_with_no_space_and_keeps_a_margin_whole():
    text = "个学习率比另一个高 0.1000 ± 0.0303（95 %），p = 0.004：是"
    for length in range(96):
        lines = wrap("长" * (length // 2) + "a" * (length % 2) + text, "  ")
        assert all(line[2] not in " %±" for line in lines)
        assert any("0.1000 ± 0.0303（" in line or line.endswith("0.1000 ± 0.0303") for line in lines)
