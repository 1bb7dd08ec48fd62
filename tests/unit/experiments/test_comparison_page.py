"""The page of a comparison: self-contained, well-formed, in two languages, for few runs and for many."""

import re
import string
from html.parser import HTMLParser

import pytest
from run_folders import write_run

from diagnosis.report.messages import Messages
from experiments.comparison import LOCALES, compare
from experiments.page import page

VOID = {"meta", "link", "line", "path", "circle"}


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(("experiments", "seeds"), [(1, 1), (2, 1), (13, 3)])
def test_the_page_holds_all_there_is_and_needs_nothing_else(experiments, seeds, language, tmp_path):
    for k in range(experiments):
        for seed in range(seeds):
            write_run(tmp_path / f"{k}_{seed}", lr=(k + 1) * 1e-3, seed=seed, floor=3 + k / 100)
    html = page(compare(sorted(tmp_path.iterdir()), language=language))
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert not re.search(r"https?://|<script|undefined|\{\{", html)
    assert len(html) < 500_000
    titles = Messages(language, LOCALES).section("page")
    shown = set(re.findall(r'<section id="(\w+)"', html))
    assert shown == {"experiments", "curves", "samples"} | (
        {"differences", "pairs", "all_runs"} if experiments > 1 else set()
    )
    assert html.count('<figure class="chart') == 4  # tokens, steps, time, bytes
    assert all(titles[anchor] in html for anchor in shown)
    for left_out in (78 - 40, 13 - 8):  # pairs, and texts of a prompt
        assert (Messages(language, LOCALES)("table.more", count=left_out) in html) == (experiments == 13)
    assert html.count('<figure class="chart') == 4  # tokens, steps, time, bytes
    assert all(titles[anchor] in html for anchor in shown)
    colours = set(re.findall(r'class="curve (\w+)"', html))
    assert colours == {f"c{k}" for k in range(min(8, experiments))} | ({"rest"} if experiments > 8 else set())


def test_runs_evaluated_at_both_ends_alone_are_drawn_from_the_first_to_the_last(tmp_path):
    run = write_run(tmp_path / "a")
    vals = [row for row in (run / "metrics.jsonl").read_text().splitlines() if '"val"' in row]
    (run / "metrics.jsonl").write_text(f"{vals[0]}\n{vals[-1]}\n")
    assert "run along the upper edge" not in page(compare([run]))


def test_names_are_escaped(tmp_path):
    write_run(tmp_path / "<b>")
    html = page(compare([tmp_path / "<b>"]))
    assert "<b>" not in re.sub(r'<b style="[^"]*">', "", html) and "&lt;b&gt;" in html


def test_both_languages_have_the_same_texts_and_values():
    english, chinese = (Messages(language, LOCALES).texts for language in ("en", "zh"))
    assert list(english) == list(chinese)
    for key, text in english.items():
        names = [sorted(n for _, n, _, _ in string.Formatter().parse(t) if n is not None) for t in (text, chinese[key])]
        assert names[0] == names[1], key
