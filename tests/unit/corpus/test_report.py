"""The corpus report: scripts and languages, figures that a recount confirms, lines that are safe to print."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus_data import make_texts, prepare
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from common.errors import UserError
from common.training_text import TrainingText
from corpus import report
from corpus.cleaning.language import FORMS, SCRIPTS, count_scripts, languages
from corpus.manifest import Manifest
from corpus.ngram_baselines import measure
from corpus.report import CorpusReport
from corpus.shards import Corpus
from prepare import parse_arguments

ROOT = Path(__file__).parents[3]
KEYS = {
    "left_out",
    "changed",
    "changed_example",
    "special_tokens",
    "unused_entries",
    "version",
    "documents",
    "tokens",
    "bytes",
    "characters",
    "lengths",
    "duplicates",
    "repetition",
    "scripts",
    "traditional_share",
    "languages",
    "characters_per_token",
    "ngram_baselines",
}


def saved(folder: Path) -> dict[str, Any]:
    """What report.json holds."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def scripts_of(text: str) -> dict[str, int]:
    row = count_scripts([text])[0].tolist()
    return {name: count for name, count in zip((*SCRIPTS, *FORMS), row, strict=True) if count}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("天地玄黃", {"han": 4, "traditional": 1}),  # the standards differ in 黃 alone
        ("汉语漢語", {"han": 4, "simplified": 2, "traditional": 2}),
        ("𠮷㐂々〇", {"han": 4}),
        ("Ａb é", {"latin": 3, "space": 1}),
        ("12３ ½", {"digit": 4, "space": 1}),
        ("，。「」!+$", {"punctuation": 7}),
        ("\t\r\n\u3000", {"space": 4}),
        ("カナかなーｶ", {"kana": 6}),
        ("한글", {"hangul": 2}),
        ("Дaα", {"cyrillic": 1, "latin": 1, "greek": 1}),
        ("\u0301\u200b\x00\ue000", {"other": 4}),
        ("😀", {"punctuation": 1}),
        ("", {}),
    ],
)
def test_scripts_of_characters(text: str, expected: dict[str, int]) -> None:
    assert scripts_of(text) == expected


@given(st.lists(st.text(max_size=20), max_size=8))
def test_every_character_is_counted_once_and_for_its_text(texts: list[str]) -> None:
    counts = count_scripts(texts)
    assert counts[:, : len(SCRIPTS)].sum(axis=1).tolist() == [len(text) for text in texts]
    assert (counts[:, len(SCRIPTS) :].sum(axis=1) <= counts[:, SCRIPTS.index("han")]).all()
    for text, row in zip(texts, counts, strict=True):
        assert count_scripts([text])[0].tolist() == row.tolist()
    assert languages(counts).total() == len(texts)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("春眠不觉晓，处处闻啼鸟。", "zh-Hans"),
        ("春眠不覺曉，處處聞啼鳥。", "zh-Hant"),
        ("床前明月光", "zh"),
        ("调用 paddle.mean 求平均值", "zh-Hans"),  # 6 Han characters beside 10 letters
        ("def mean(x): return sum(x) / len(x)  # 平均", "latin"),
        ("これは日本語の文章です", "ja"),
        ("日本の「の」字，其义为“的”，见于招牌与商品之名，人皆识之", "zh-Hans"),
        ("한국어 문장", "ko"),
        ("Привет", "cyrillic"),
        ("2026-11-23!", "none"),
        ("", "none"),
    ],
)
def test_language_by_script(text: str, language: str) -> None:
    assert languages(count_scripts([text])) == {language: 1}


def test_figures_are_those_of_a_recount(jsonl, tmp_path: Path) -> None:
    texts = [*make_texts(120), "春眠不覺曉，處處聞啼鳥。", "<|im_start|>花<|im_end|>"]
    out = tmp_path / "out"
    manifest = prepare([jsonl([*texts, texts[0]])], out, val_fraction=0.2, vocab_size=350)
    found = saved(out)
    assert set(found) == KEYS
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    plain = [text.removeprefix("<|im_start|>").removesuffix("<|im_end|>") for text in texts]
    lengths = sorted(len(tokenizer.encode(text).ids) + 2 for text in plain)
    assert (found["documents"], found["tokens"]) == (122, sum(lengths))
    assert found["bytes"] == sum(len(text.encode()) for text in texts)
    assert found["characters"] == sum(map(len, texts))
    percentiles = {"min": 0, "p10": 12, "p50": 60, "p90": 109, "p99": 120, "max": 121}  # of 122: the ceil(p n)-th
    assert found["lengths"]["tokens"] == {name: lengths[at] for name, at in percentiles.items()}
    edges, counts = found["lengths"]["histogram"].values()
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        assert count == sum(low <= length < high for length in lengths)
    assert sum(counts) == 122
    kinds: Counter[str] = Counter()
    for text in plain:
        kinds.update(scripts_of(text))
    total = sum(kinds[script] for script in SCRIPTS)
    assert found["scripts"] == pytest.approx({s: kinds[s] / total for s in SCRIPTS if kinds[s]}, abs=1e-6)
    assert found["traditional_share"] == pytest.approx(
        kinds["traditional"] / (kinds["traditional"] + kinds["simplified"]), abs=1e-6
    )
    assert found["languages"]["zh-Hant"] == pytest.approx(1 / 122, abs=1e-6)
    assert sum(found["languages"].values()) == pytest.approx(1, abs=1e-5)
    assert found["duplicates"]["exact"] == found["left_out"]["exact"]["documents"] == 1
    assert (found["special_tokens"], found["changed"]) == (0, 0)  # a BOS and an EOS at the ends are a document's own
    used = set(Corpus.open(out).split("train").read(0, 10**6).tolist())
    unused = TrainingText.read(out)
    assert unused is not None and found["unused_entries"] == len(unused.unused_tokens)
    assert found["unused_entries"] == manifest.vocab_size - len(used | {0, 1, 2})
    assert not used & set(unused.unused_tokens)
    assert found["characters_per_token"]["val"] == manifest.splits["val"].characters_per_token


def test_baselines_of_a_folder_are_those_of_its_streams(prepared: Path) -> None:
    corpus = Corpus.open(prepared)
    val, baselines = corpus.manifest.splits["val"], corpus.manifest.ngram_baselines
    expected = measure(corpus.split("train"), corpus.split("val"), corpus.manifest.vocab_size, val.bytes / val.tokens)
    assert baselines is not None and baselines.tokens == val.tokens - 1
    assert baselines.losses() == pytest.approx(expected.losses(), abs=1e-6)
    found = saved(prepared)["ngram_baselines"]
    assert list(found) == ["uniform", "unigram", "bigram", "trigram"]
    assert found["bigram"]["nats"] == baselines.bigram
    assert found["uniform"]["bits_per_byte"] == pytest.approx(
        math.log2(corpus.manifest.vocab_size) * val.tokens / val.bytes, abs=1e-6
    )


def test_without_validation_text_there_are_no_baselines(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    out = tmp_path / "out"
    manifest = prepare([jsonl(make_texts(3))], out, tokenizer=tokenizer_json, val_fraction=0)
    found = CorpusReport.read(out)
    assert manifest.ngram_baselines is None and found.ngram_baselines is None
    text = "\n".join(report.lines(manifest, found))
    assert "baselines    none: there is no validation text" in text
    assert "val          0 documents, 0.0 MB, 0 tokens\n" in text
    assert f"{manifest.entropy_nats:.3f}" in report.loss_to_beat(manifest)


def test_a_folder_of_an_earlier_version_is_prepared_again(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    out, source = tmp_path / "out", jsonl(make_texts(30))

    def run() -> str:
        said = io.StringIO()
        prepare([source], out, tokenizer=tokenizer_json, progress=said)
        return said.getvalue()

    run()
    data = json.loads((out / "manifest.json").read_text())
    data["format"] = 1
    (out / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(
        UserError,
        match=r"manifest\.json: .*\(format: made by another version of prepare\.py, 1 and not 2\); prepare the corpus",
    ):
        Corpus.open(out)
    assert "preparing again" in run()
    assert "already prepared" in run()
    (out / "report.json").unlink()
    assert "no report.json" in run()
    assert CorpusReport.read(out).documents == 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no report.json here"),
        ("{", "cannot be read"),
        ("[]", "not a report of this version"),
        ('{"version": 99}', "not a report of this version"),
    ],
)
def test_a_report_that_cannot_be_read_has_its_sentence(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=message):
        CorpusReport.read(tmp_path)


def full_report(prepared: Path) -> CorpusReport:
    """A report with something in every part."""
    more: dict[str, Any] = {
        "scripts": {"han": 0.9997, "kana": 0.0002, "greek": 0.0001},
        "duplicates": {
            "exact": 3,
            "near": 2,
            "near_in_val": 1,
            "examples": [
                {"kept": "花", "dropped": "花", "similarity": 1.0},
                {"kept": "春眠不觉晓\n" * 30, "dropped": "春眠\x1b[31m不覺曉", "similarity": 0.9},
            ],
        },
        "repetition": {
            "scored": 1234,
            "dropped": 5,
            "thresholds": {"lines": 0.5, "runs": 32},
            "by_rule": {"lines": 5, "runs": 0},
            "shares": {},
            "examples": [{"rule": "lines", "value": 0.75, "text": "啊\r啊"}],
        },
    }
    return CorpusReport.model_validate(saved(prepared) | more)


def test_lines_are_short_and_say_what_the_report_holds(prepared: Path) -> None:
    manifest = Manifest.read(prepared)
    manifest.settings["dedup"] = "near"
    text = "\n".join(report.lines(manifest, full_report(prepared)))
    assert max(map(len, text.splitlines())) <= report.WIDTH
    for fact in (
        "characters   han 100.0 %, traces of kana, greek",
        "duplicates   3 exact, 2 near ones, 1 of those in val (left out)",
        " 90% 春眠不觉晓 春眠",
        "like 春眠 [31m不覺曉",
        "repetition   5 of 1,234 documents left out; over the limits by rule: lines 5",
        "lines 0.75: 啊 啊",
    ):
        assert fact in text
    assert text.index(" 90% 春眠") < text.index("100% 花") and "like 花" not in text
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    for name, nats in manifest.ngram_baselines.losses().items():
        assert any(line.split()[:2] == [name, f"{nats:.3f}"] for line in text.splitlines())


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "prepare.py", *map(str, arguments)], capture_output=True, text=True)


def test_report_of_a_folder_made_before(prepared: Path, tmp_path: Path) -> None:
    done = run_script("--report", prepared)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "\n".join(report.lines(Manifest.read(prepared), CorpusReport.read(prepared))) + "\n"
    missing = run_script("--report", tmp_path / "none")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"{tmp_path / 'none'}: no manifest.json here; make the folder with prepare.py\n"
    for flags, said in (
        (("--report", prepared, "--output", "x"), "leave out --input and --output"),
        (("--output", "x"), "the following arguments are required: --input"),
    ):
        with pytest.raises(UserError, match=said):
            parse_arguments([str(flag) for flag in flags])


JUNK = [None, True, -1, 10**400, float("inf"), "many", "\ud800", [], {}, [1], {"a": 1}, {"\x1b[31m": 1}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def test_junk_at_any_place_of_the_file_is_refused_or_shown(prepared: Path) -> None:
    original = (prepared / "report.json").read_text(encoding="utf-8")
    manifest = Manifest.read(prepared)
    refused = 0
    for path in [path for path in places(json.loads(original)) if path]:
        for junk in JUNK:
            data = target = json.loads(original)
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = junk
            (prepared / "report.json").write_text(json.dumps(data), encoding="utf-8")
            try:
                found = CorpusReport.read(prepared)
            except UserError as error:
                assert "not a report of this version (" in str(error) and str(error).endswith(
                    "); prepare the corpus again"
                )
                refused += 1
            else:
                assert "\x1b" not in "\n".join(report.lines(manifest, found))
    assert refused > 300
