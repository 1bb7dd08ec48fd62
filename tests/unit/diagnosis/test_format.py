"""Numbers and texts of the page."""

import math

from hypothesis import given
from hypothesis import strategies as st

from diagnosis.report.format import amount, excerpt, number, percent, plain, printable, repeated_pieces, short, size


def test_numbers_are_short_and_never_nan():
    assert [short(v) for v in (0, 0.25, 250, 1500, 20_000_000, 2e-4, 1.5e-4, 1e-6)] == [
        "0",
        "0.25",
        "250",
        "1.5k",
        "20M",
        "2e-4",
        "1.5e-4",
        "1e-6",
    ]
    assert [plain(v) for v in (0.5, 12, 3400, 65536.0)] == ["0.5", "12", "3,400", "65,536"]
    assert [percent(v).replace("\N{NO-BREAK SPACE}", " ") for v in (0, 0.0001, 0.012, 0.0996, 0.41, 1.0)] == [
        "0 %",
        "< 0.1 %",
        "1.2 %",
        "10 %",
        "41 %",
        "100 %",
    ]
    assert amount(45_234_688, "en") == "45.2 million" and amount(45_234_688, "zh") == "4,523 万"
    assert amount(983_040_000, "zh") == "9.83 亿" and amount(999, "en") == "999"
    assert size(12_400_000) == "12.4 MB"
    for show in (number, percent, plain, short, size, lambda v: amount(v, "en")):
        assert {show(v) for v in (None, math.nan, math.inf, True)} == {"\N{EN DASH}"}


@given(st.text())
def test_pieces_together_are_the_text(text):
    assert "".join(piece for piece, _ in repeated_pieces(text)) == text


def test_repeated_pieces_are_the_second_occurrences():
    assert repeated_pieces("我们去玩，我们去玩吧", 4) == [("我们去玩，", False), ("我们去玩", True), ("吧", False)]
    assert repeated_pieces("one two three. One two three", 4) == [("one two three. One two three", False)]
    assert repeated_pieces("a b c d a b c d", 4) == [("a b c d ", False), ("a b c d", True)]
    # five are a name that comes again
    assert [mark for _, mark in repeated_pieces("李奶奶来了，李奶奶来了")] == [False]
    assert repeated_pieces("他对李奶奶说，他对李奶奶说")[-1] == ("他对李奶奶说", True)
    assert repeated_pieces("各不相同的文字") == [("各不相同的文字", False)]


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_printable_text_can_be_written_as_html(text):
    clean = printable(text)
    clean.encode("utf-8")
    assert len(clean) == len(text)
    assert not any(ord(c) < 32 and c not in "\t\n" for c in clean)


def test_ordinary_text_is_left_alone():
    text = "复读机 traditional 體, naïve\n\tтекст 日本語 한국어 €"
    assert printable(text) == text
    assert excerpt("春天来了", 3) == "春天…" and excerpt("春天", 3) == "春天"
