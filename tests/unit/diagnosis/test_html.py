"""The HTML page: well-formed, self-contained, escaped, in two languages, showing what there is and nothing else."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diagnosis.report.html import TEMPLATES, page, report_page
from diagnosis.report.messages import Messages
from evaluation.repetition import METRICS

ENGLISH = Messages("en").section("page")
ROOT = TEMPLATES.parents[2]
VOID = {"meta", "link", "br", "hr", "img", "input", "col"}
SECTIONS = (
    "causes",
    "baselines",
    "repetition",
    "samples",
    "curves",
    "experts",
    "figures",
    "decoding",
    "corpus",
    "checks",
    "notes",
)
BASELINES = (("uniform", 8.76), ("unigram", 6.61), ("bigram", 5.10), ("trigram", 4.69))


class Outline(HTMLParser):
    """Checks that tags are balanced; keeps what stands in the page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    return parser


def text_of(html: str) -> str:
    return "".join(outline(html).texts)


def baselines_report() -> dict:
    return {name: {"nats": nats, "bits_per_byte": nats / 3.4} for name, nats in BASELINES}


def corpus_report() -> dict:
    return {
        "version": 1,
        "documents": 10243,
        "tokens": 5_512_000,
        "bytes": 12_400_000,
        "characters": 4_331_000,
        "lengths": {
            "tokens": {"min": 12, "p10": 60, "p50": 310, "p90": 1450, "p99": 6020, "max": 48211},
            "histogram": {"edges": [8, 64, 512, 65536], "counts": [100, 8000, 2143]},
        },
        "duplicates": {
            "exact": 412,
            "near": 233,
            "examples": [{"kept": "举头望明月", "dropped": "舉頭望明月", "similarity": 0.97}],
        },
        "repetition": {
            "scored": 10243,
            "dropped": 57,
            "thresholds": {"lines": 0.3},
            "by_rule": {"lines": 57},
            "shares": {"lines": {"p50": 0.0, "p90": 0.03, "p99": 0.31}},
            "examples": [{"rule": "lines", "value": 0.72, "text": "点击这里。" * 9}],
        },
        "scripts": {"han": 0.81, "punctuation": 0.12, "latin": 0.07},
        "traditional_share": 0.083,
        "languages": {"zh-Hans": 0.98, "latin": 0.02},
        "characters_per_token": {"train": 0.786, "val": 0.781},
        "ngram_baselines": baselines_report(),
    }


def diagnosis(language: str = "en", experts: int = 4, layers: int = 2, steps: int = 40) -> dict:
    figures = {"repetition": 0.41, "copying": 0.02, "distinct_2": 0.5, "loops": 0.25}
    curve = [[10 * k, 9 / (1 + k / 10)] for k in range(1, steps + 1)]
    names = ("train_loss", "val_loss", "lr", "grad_norm", "loss_scale", "update_ratio")
    shares = ("repetition", "true_repetition", "loops", "unchanged")
    return {
        "version": 1,
        "language": language,
        "subject": {
            "path": "runs/first",
            "kind": "run",
            "parameters": 45_234_688,
            "vocab_size": 6400,
            "step": 400,
            "total_steps": 27600,
            "tokens": 52_428_800,
            "data": "data/corpus",
        },
        "verdict": {"parrots": True, "healthy": False, "headline": "HEADLINE"},
        "ladder": {
            "rungs": [{"name": n, "label": n, "nats": v, "bits_per_byte": v / 3.4} for n, v in BASELINES],
            "model": {"nats": 7.42, "bits_per_byte": 2.18},
            "train": {"nats": 7.38, "bits_per_byte": 2.17},
            "stands": "below_uniform",
            "sentence": "STANDS",
        },
        "repetition": [{"who": who, "label": who, **figures} for who in ("true", "sampled", "greedy")],
        "causes": [
            {"id": "rate_too_low", "title": "TITLE ONE", "confidence": 0.9, "evidence": ["SEEN"], "next": "RAISE"},
            {"id": "decoding", "title": "TITLE TWO", "confidence": 0.2, "evidence": [], "next": "SAMPLE"},
        ],
        "offsets": [{"offset": k, "nats": 7.4 + abs(k - 1)} for k in range(4)],
        "curves": {**dict.fromkeys(names, curve), **{name: [[s, v / 10] for s, v in curve] for name in shares}},
        "expert_load": {
            "steps": [10 * k for k in range(1, steps + 1)],
            "layers": [[[1 / experts] * experts for _ in range(steps)] for _ in range(layers)],
        },
        "samples": [{"step": step, "prompt": "春天", "text": f"来了{step}"} for step in (100, 200, 300)],
        "decoding": {
            "grid": [
                {"temperature": t, "top_p": 0.95, "repetition_penalty": 1.1, **figures, "sample": f"GRID{t}"}
                for t in (0.5, 1.0)
            ],
            "true": {**figures, "repetition": 0.01},
            "best": 1,
            "prompt": "春天",
            "sentence": "CHOOSE",
        },
        "figures": {
            "minimal_pairs": {"all": {"pairs": 90, "share": 0.7, "low": 0.6, "high": 0.79}},
            "bits_per_byte_by_position": [{"start": 0, "end": None, "bits_per_byte": 1.5, "bytes": 900}],
            "bits_per_byte_by_length": [{"start": 0, "end": 200, "bits_per_byte": 1.6, "bytes": 900}],
        },
        "corpus": corpus_report(),
        "alarms": [{"step": 200, "alarm": "flat_loss", "message": "FLAT"}],
        "preflight": [{"id": "x", "ok": False, "level": "fail", "text": "FAILED", "hint": "HINTED"}],
        "notes": ["NOTED"],
    }


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_whole_diagnosis_shows_every_section_and_finding(language):
    html = page(diagnosis(language))
    found = outline(html)
    assert [name for name in found.ids if name in SECTIONS] == list(SECTIONS)
    text = "".join(found.texts)
    for said in (
        "HEADLINE",
        "STANDS",
        "TITLE ONE",
        "SEEN",
        "RAISE",
        "TITLE TWO",
        "SAMPLE",
        "GRID0.5",
        "GRID1.0",
        "CHOOSE",
        "FLAT",
        "FAILED",
        "HINTED",
        "NOTED",
        "来了100",
        "来了300",
        "7.42",
        "2.18",
        "舉頭望明月",
    ):
        assert said in text, said
    own = Messages(language).section("page")
    for key in (
        "main_cause",
        "further_causes",
        "baselines",
        "samples",
        "curves",
        "experts",
        "decoding",
        "corpus",
        "best",
    ):
        assert own[key] in text
    assert ("lang", "zh-CN" if language == "zh" else "en") in found.attributes


def without(*keys: str) -> dict:
    """The diagnosis where nothing is known for some keys, as of a model whose run or text is not there."""
    bare = diagnosis()
    nothing = {key: [] if isinstance(bare[key], list) else None for key in keys}
    if "curves" in keys:
        nothing["curves"] = {name: [] for name in bare["curves"]}
    if "ladder" in keys:
        nothing["ladder"] = {"rungs": [], "model": None, "train": None, "stands": None, "sentence": "NOTHING"}
    return bare | nothing


@pytest.mark.parametrize(
    "section, keys",
    [
        ("causes", ["causes"]),
        ("baselines", ["ladder", "offsets"]),
        ("repetition", ["repetition"]),
        ("samples", ["samples"]),
        ("curves", ["curves"]),
        ("experts", ["expert_load"]),
        ("figures", ["figures"]),
        ("decoding", ["decoding"]),
        ("corpus", ["corpus"]),
        ("checks", ["alarms", "preflight"]),
        ("notes", ["notes"]),
    ],
)
def test_a_section_without_data_is_left_out_and_no_link_leads_to_it(section, keys):
    found = outline(page(without(*keys)))
    assert section not in found.ids
    assert ("href", f"#{section}") not in found.attributes
    assert set(SECTIONS) - {section} <= set(found.ids)


def test_a_run_that_has_only_begun_is_a_page_too():
    bare = without("ladder", "offsets", "repetition", "samples", "curves", "expert_load", "figures", "decoding")
    bare["subject"] = dict.fromkeys(bare["subject"]) | {"path": "runs/first", "kind": "run", "vocab_size": 9}
    bare["verdict"] = {"parrots": None, "healthy": None, "headline": "HEADLINE"}
    text = text_of(page(bare | {"causes": []}))
    assert "HEADLINE" in text and ENGLISH["unknown"] in text
    assert not re.search(r"\b(nan|none|null|undefined)\b", text, re.IGNORECASE)


def test_metrics_of_texts_that_were_too_short_are_dashes():
    short = diagnosis()
    for row in (*short["repetition"], *short["decoding"]["grid"], short["decoding"]["true"]):
        row |= dict.fromkeys(METRICS)
    text = text_of(page(short))
    assert "\N{EN DASH}" in text and not re.search(r"\b(nan|none)\b", text, re.IGNORECASE)


NASTY = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "{{ 7 * 7 }}",
            "</style><b>",
            "\ud800",
            "\x00\x1b[31m",
            "&lt;",
            "'; --",
            "]]>",
            "<!--",
            "a\u202eb",
        ]
    ),
)


PLAIN_TAGS = set(outline(page(diagnosis(steps=3))).tags)


@given(NASTY)
@settings(max_examples=40, deadline=None)
def test_texts_of_others_stay_texts(nasty):
    marked = diagnosis(steps=3)
    marked["subject"]["path"] = marked["subject"]["data"] = marked["verdict"]["headline"] = nasty
    marked["causes"][0].update(title=nasty, evidence=[nasty], next=nasty)
    marked["samples"][0].update(prompt=nasty, text=nasty)
    marked["decoding"]["grid"][0]["sample"] = marked["decoding"]["prompt"] = nasty
    marked["corpus"]["duplicates"]["examples"][0].update(kept=nasty, dropped=nasty)
    marked["corpus"]["scripts"] = {nasty: 1.0}
    marked["alarms"][0].update(alarm=nasty, message=nasty)
    marked["ladder"]["rungs"][0]["label"] = nasty
    marked["notes"] = [nasty or "note"]
    html = page(marked)
    html.encode("utf-8")
    found = outline(html)
    assert set(found.tags) <= PLAIN_TAGS | {"mark"}
    assert not {"script", "img", "iframe"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", html)


def test_the_text_is_shown_as_written():
    marked = diagnosis()
    marked["notes"] = ['<b>1 < 2 & "3"</b> {{ t }}']
    assert '<b>1 < 2 & "3"</b> {{ t }}' in text_of(page(marked))


@pytest.mark.parametrize("html", [page(diagnosis()), report_page(corpus_report(), "zh")], ids=["page", "report"])
def test_nothing_is_fetched(html):
    found = outline(html)
    assert not {"script", "img", "iframe", "object", "embed"} & set(found.tags)
    assert [
        value
        for name, value in found.attributes
        if name in ("src", "href", "srcset", "xlink:href")
        if not value.startswith(("#", "data:,"))
    ] == []
    assert not re.search(r"https?:|url\(|@import", html)
    assert "default-src 'none'" in html


def test_every_figure_has_a_description_and_every_table_headings():
    html = page(diagnosis())
    assert html.count('role="img"') == len(re.findall(r'role="img" aria-label="[^"]{10,}"', html)) >= 7 + 2 + 1
    for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
        assert 'scope="' in table


def test_long_runs_stay_small():
    long = diagnosis(experts=8, layers=24, steps=4000)
    long["samples"] = [
        {"step": step, "prompt": f"第{prompt}个提示", "text": "重复的文本" * 400}
        for step in range(200)
        for prompt in range(9)
    ]
    long["decoding"]["grid"] = [long["decoding"]["grid"][0] | {"sample": "样例" * 2000}] * 300
    long["curves"] = {name: [[k, 5 + math.sin(k)] for k in range(10_000)] for name in long["curves"]}
    long["corpus"]["duplicates"]["examples"] *= 500
    assert len(page(long).encode()) < 500_000


@pytest.mark.parametrize("experts, drawn", [(4, "band b0"), (64, "curve loop")])
def test_many_experts_are_drawn_as_lines(experts, drawn):
    html = page(diagnosis(experts=experts))
    assert drawn in html
    assert ENGLISH["experts_lead" if experts == 4 else "experts_lead_many"] in text_of(html)


def test_the_model_stands_between_the_rungs_by_its_loss():
    text = text_of(page(diagnosis()))
    at = [text.index(figure) for figure in ("8.76", "7.42", "7.38", "6.61", "5.10", "4.69")]
    assert at == sorted(at)


def test_the_lowest_offset_is_marked_and_a_wrong_one_is_marked_as_wrong():
    right = page(diagnosis() | {"offsets": [{"offset": k, "nats": n} for k, n in enumerate([9.0, 3.0, 5.0])]})
    wrong = page(diagnosis() | {"offsets": [{"offset": k, "nats": n} for k, n in enumerate([9.0, 5.0, 3.0])]})
    assert 'class="tag"' in right and "tag bad" not in right
    assert "tag bad" in wrong


def test_heat_is_the_distance_from_the_true_text():
    grid = [
        {
            "temperature": t,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "repetition": r,
            "copying": 0.0,
            "distinct_2": 0.5,
            "loops": 0.0,
            "sample": "x",
        }
        for t, r in ((1.0, 0.02), (1.5, 0.32), (0.0, 0.62))
    ]
    true = {"repetition": 0.02, "copying": 0.0, "distinct_2": 0.5, "loops": 0.0}
    html = page(
        without("ladder", "offsets")
        | {"decoding": {"grid": grid, "true": true, "best": 0, "prompt": "p", "sentence": "s"}}
    )
    heats = [float(heat) for heat in re.findall(r"--heat:([\d.]+)", html)]
    assert heats[:: len(METRICS)] == [1.0, 0.0, 0.5]
    assert not any(heats[k] for k in range(len(heats)) if k % len(METRICS))
    assert html.count('class="best"') == 1
    # Ordered by the settings, of which temperature 0 is greedy; the best one keeps its mark.
    text = text_of(html)[text_of(html).index(ENGLISH["decoding_lead"]) :]
    assert text.index(ENGLISH["greedy_setting"]) < text.index("1.00") < text.index("1.50")
    assert html.index("--heat:1.0") < html.index('class="best"') < html.index("--heat:0.5")


def test_every_text_that_the_templates_ask_for_exists():
    source = "".join(path.read_text("utf-8") for path in TEMPLATES.glob("*.j2"))
    asked = set(re.findall(r"\bt\.([a-z_0-9]+)", source))
    assert len(asked) > 30
    assert asked <= set(ENGLISH)


def test_the_texts_are_all_used():
    sources = [*TEMPLATES.glob("*.j2"), *(TEMPLATES.parent / f"{name}.py" for name in ("html", "sections"))]
    text = "".join(Path(path).read_text("utf-8") for path in sources)
    named = {*METRICS, "uniform", "unigram", "bigram", "trigram", "model", "train", "true", "sampled", "greedy"}
    scripts = {
        "han",
        "latin",
        "digit",
        "punctuation",
        "kana",
        "hangul",
        "cyrillic",
        "space",
        "other",
        "zh",
        "zh-hans",
        "zh-hant",
        "ja",
        "ko",
        "greek",
        "arabic",
        "none",
        "pass",
        "warn",
        "fail",
        "parrots",
        "healthy",
        "faulty",
        "unknown",
    }
    composed = re.compile("alarm_|by_|kind_|rule_|offset_|.*_knows$|.*_means$")
    unused = [
        key
        for key in ENGLISH
        if key not in named | scripts
        and not composed.match(key)
        and not re.search(rf"(\bt\.|[\"']){re.escape(key)}\b", text)
    ]
    assert unused == []


def test_the_report_page_holds_the_corpus_in_the_language_asked_for():
    text = text_of(report_page(corpus_report(), "zh", heading="data/corpus"))
    for said in (
        "data/corpus",
        "10,243",
        "551 万",
        "汉字",
        "简体中文",
        "行",
        "31\N{NO-BREAK SPACE}%",
        "81\N{NO-BREAK SPACE}%",
        "均匀",
        "8.76",
        "点击这里",
    ):
        assert said in text
    assert "Han" in text_of(report_page(corpus_report(), "en"))
    without_validation = corpus_report() | {"characters_per_token": {"train": 0.786, "val": 0.0}}
    assert "0.00" not in text_of(report_page(without_validation, "en"))


def test_prepare_writes_the_page_of_its_report(tmp_path):
    lines = [json.dumps({"text": f"第{k}篇：<b>春天</b>来了，小河边的柳树发芽了。"}) for k in range(60)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = [
        sys.executable,
        "prepare.py",
        "--input",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / "out"),
        "--vocab_size",
        "300",
        "--val_fraction",
        "0.2",
        "--workers",
        "1",
        "--lang",
        "zh",
        "--html",
    ]

    def run(place):
        return subprocess.run([*command, str(place)], cwd=ROOT, capture_output=True, text=True)

    wrong = run(tmp_path / "nowhere" / "page.html")
    assert wrong.returncode == 2 and "nowhere" in wrong.stderr and not (tmp_path / "out").exists()
    right = run(tmp_path / "page.html")
    assert right.returncode == 0, right.stderr
    text = text_of((tmp_path / "page.html").read_text("utf-8"))
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert str(tmp_path / "out") in text
    assert f"{report['ngram_baselines']['bigram']['nats']:.2f}" in text and f"{report['documents']:,}" in text
