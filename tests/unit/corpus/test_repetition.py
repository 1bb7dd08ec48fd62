"""Documents that repeat themselves: the four measures, what they leave alone, and what prepare() does about it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from corpus_data import make_texts, prepare
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from corpus.cleaning import repetition
from corpus.cleaning.normalization import normalized_characters
from corpus.cleaning.repetition import (
    EXAMPLES,
    LIMITS,
    MIN_CHARACTERS,
    NGRAM,
    RULES,
    RUN_SHARE,
    Repetition,
    breaks_a_rule,
    scores,
)
from corpus.report import CorpusReport, left_out_line, lines
from sample_stories.generator import generate_stories

PROSE = (
    "从前有一座山，山上有一座庙，庙里住着一位老和尚和三个小和尚。每天清晨，他们挑水、扫地、念经，日子过得平静而安稳。"
    "有一年大旱，井水干了，老和尚便带着徒弟们走了三天三夜，终于在山后的石缝里找到一眼清泉。"
)
POEM = (
    "园有桃，其实之肴。\n心之忧矣，我歌且谣。\n不知我者，谓我士也骄。\n彼人是哉，子曰何其？\n心之忧矣，其谁知之？\n"
    "其谁知之，盖亦勿思！\n园有棘，其实之食。\n心之忧矣，聊以行国。\n不知我者，谓我士也罔极。\n彼人是哉，子曰何其？"
)
SETTINGS = {
    "epochs": "遍历训练数据的次数",
    "batch": "每一步的样本数",
    "rate": "学习率的峰值",
    "warmup": "预热的步数",
    "clip": "梯度裁剪的上限",
    "seed": "随机数的种子",
    "width": "隐藏层的宽度",
    "depth": "网络的层数",
}
TABLE = "| 名称 | 含义 | 默认 |\n|------|------|------|\n" + "".join(
    f"| {name} | {meaning} | {i} |\n" for i, (name, meaning) in enumerate(SETTINGS.items())
)
RULER = "标题\n" + "=" * 200 + "\n" + PROSE + "\n" + "-" * 200


def measured(*texts: str) -> list[dict[str, float]]:
    rows = scores(texts, [text.encode() for text in texts], normalized_characters(texts))
    return [dict(zip(RULES, row.tolist(), strict=True)) for row in rows]


def drops(text: str) -> bool:
    return bool(breaks_a_rule(scores([text], [text.encode()], normalized_characters([text])))[0])


def test_lines_count_the_letters_of_those_that_came_before() -> None:
    unique = ["甲乙丙丁戊己庚辛" + c * 12 for c in "子丑寅卯"]
    text = "\n".join([*unique, unique[0], unique[1], "", "", "}", "}"])
    assert measured(text)[0]["lines"] == pytest.approx(2 / 6)


@given(st.lists(st.text(st.sampled_from("甲乙 \n"), max_size=60), max_size=5))
def test_ngrams_are_those_of_looking_at_each(texts: list[str]) -> None:
    for row, text in zip(measured(*texts) if texts else [], texts, strict=True):
        letters = "".join(text.split())
        starts = [i for i in range(len(letters) - NGRAM + 1) if letters.find(letters[i : i + NGRAM]) < i]
        covered = {i + k for i in starts for k in range(NGRAM)}
        assert row["ngrams"] == (pytest.approx(len(covered) / len(letters)) if len(letters) >= MIN_CHARACTERS else 0)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20).map(lambda low: low << 40), max_size=30))
def test_keys_that_were_there_before_are_found(keys: list[int]) -> None:
    found = repetition._repeated(np.array(keys, dtype=np.uint64)).tolist()
    assert found == [place for place, key in enumerate(keys) if key in keys[:place]]


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16])
def test_runs_count_how_often_an_ngram_stands_in_a_row(period: int) -> None:
    gram = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳"[:period]
    before, after = "春夏秋冬", "东西南北"
    assert measured(before + gram * 9 + after)[0]["runs"] == 9


def test_runs_end_at_the_end_of_a_document() -> None:
    assert [row["runs"] for row in measured("哈哈哈", "哈哈", "", "嘿")] == [3, 2, 0, 1]


@pytest.mark.parametrize("run", ["哈" * 33, "0" * 60, "3.14159" * 40, "嘿嘿。" * 20])
def test_a_run_drops_no_novel_and_a_long_one_any_text(run: str) -> None:
    rng = random.Random(0)
    novel = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(6000))
    row = measured(novel[:3000] + run + novel[3000:])[0]
    assert row["runs"] <= LIMITS["runs"] and not drops(novel[:3000] + run + novel[3000:])
    assert drops(novel + "哈" * 700) and drops(novel[:200] + run)


@pytest.mark.parametrize(
    "text",
    [
        PROSE[:25] * 8,
        "\n".join([PROSE[:20]] * 9),
        "哈" * 33,
        "我喜欢你。" * 40,
        "谢谢！" * 33,
        (PROSE + "\n") * 6,
        PROSE + "0 " * 40,
    ],
)
def test_loops_are_dropped(text: str) -> None:
    assert drops(text)


@pytest.mark.parametrize("text", [PROSE, POEM, TABLE, RULER, "", "。", "哈" * 20, "ha " * 5, PROSE + PROSE, "= " * 500])
def test_sound_text_is_kept(text: str) -> None:
    assert not drops(text)


def test_stories_are_kept() -> None:
    stories = list(generate_stories(300, seed=5, hamlet=True))
    assert not breaks_a_rule(scores(stories, [s.encode() for s in stories], normalized_characters(stories))).any()


@given(st.lists(st.text(st.sampled_from("甲乙丙 \n，a1"), max_size=150), min_size=1, max_size=6))
@settings(deadline=None)
def test_scores_are_a_documents_own_and_in_range(texts: list[str]) -> None:
    together = measured(*texts)
    assert together == [measured(text)[0] for text in texts]
    for row, text in zip(together, texts, strict=True):
        assert all(0 <= row[rule] <= 1 for rule in ("lines", "ngrams", "redundancy"))
        assert row["runs"] == longest_run("".join(c.lower() for c in text if c.isalnum()))


def longest_run(text: str) -> int:
    """By trying every n-gram."""
    best = min(1, len(text))
    for period in range(1, 17):
        for start in range(len(text)):
            times = 1
            while text[start + times * period :].startswith(text[start : start + period]) and (
                start + (times + 1) * period <= len(text)
            ):
                times += 1
            best = max(best, times)
    return best


def test_report_counts_and_percentiles() -> None:
    repetition = Repetition()
    values = np.zeros((200, len(RULES)), dtype=np.float32)
    values[:, 1] = np.arange(200) / 200
    values[:, 3] = np.arange(200)
    repetition.add(values[:50])
    repetition.add(values[50:])
    report = repetition.report(0)
    assert report["scored"] == 200 and report["thresholds"] == LIMITS | {"run_share": RUN_SHARE}
    assert report["by_rule"] == {"lines": 0, "ngrams": 39, "redundancy": 0, "runs": 167}
    assert report["shares"]["ngrams"] == pytest.approx({"p50": 0.495, "p90": 0.895, "p99": 0.985}, abs=0.006)
    assert report["shares"]["runs"] == pytest.approx({"p50": 99, "p90": 179, "p99": 197}, abs=1)
    assert report["shares"]["lines"] == {"p50": 0, "p90": 0, "p99": 0}


@given(st.randoms())
def test_examples_do_not_depend_on_the_order(rng: random.Random) -> None:
    digests = [bytes([i]) * 16 for i in range(30)] * 2
    rng.shuffle(digests)
    repetition = Repetition()
    for digest in digests:
        repetition.add_example(digest, np.array([0, 0.9, 0.86, 1], dtype=np.float32), f"text {digest[0]}")
    examples = repetition.report(0)["examples"]
    assert [example["text"] for example in examples] == [f"text {i}" for i in range(EXAMPLES)]
    assert examples[0]["rule"] == "ngrams" and examples[0]["value"] == pytest.approx(0.9)


LOOPS = [PROSE[i : i + 20] * 12 for i in range(0, 40, 4)]


def test_prepare_drops_them_from_both_sides_and_says_so(jsonl, tmp_path: Path) -> None:
    texts = make_texts(100)
    source = jsonl([*texts, *LOOPS, LOOPS[0]])
    dropped = prepare([source], tmp_path / "drop", vocab_size=300, val_fraction=0.3)
    kept = prepare([source], tmp_path / "keep", vocab_size=300, val_fraction=0.3, repetition="keep")
    count = {
        name: sum(split.documents for split in manifest.splits.values())
        for name, manifest in (("drop", dropped), ("keep", kept))
    }
    assert count == {"drop": 100, "keep": 110}
    assert dropped.exact_duplicates == kept.exact_duplicates == 1
    assert f"trained on the {dropped.splits['train'].documents} training documents" in dropped.tokenizer_source
    for name in ("drop", "keep"):
        report = json.loads((tmp_path / name / "report.json").read_text())["repetition"]
        assert (report["scored"], report["by_rule"]["ngrams"]) == (110, 10)
        assert report["dropped"] == (10 if name == "drop" else 0)
        assert {example["text"] for example in report["examples"]} == {loop[:120] for loop in LOOPS}


def test_validation_files_are_left_as_they_are(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    manifest = prepare(
        [jsonl(make_texts(20))],
        tmp_path / "out",
        tokenizer=tokenizer_json,
        val_inputs=[jsonl(LOOPS, "val.jsonl")],
    )
    assert manifest.splits["val"].documents == len(LOOPS)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["repetition"]["scored"] == 20


def test_small_corpus_gives_validation_a_sound_document(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    source = jsonl([*LOOPS, "甲", "乙"])
    manifest = prepare([source], tmp_path / "out", tokenizer=tokenizer_json, val_fraction=1e-9)
    assert {name: split.documents for name, split in manifest.splits.items()} == {"train": 1, "val": 1}


def test_nothing_but_loops_is_refused_with_a_hint(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    with pytest.raises(UserError, match="10 repeat themselves and would stay with --repetition keep"):
        prepare([jsonl(LOOPS)], tmp_path / "out", tokenizer=tokenizer_json)
    with pytest.raises(UserError, match="--repetition maybe: must be drop or keep"):
        prepare([jsonl(LOOPS)], tmp_path / "out", repetition="maybe")


def test_what_is_left_out_is_counted_in_bytes_by_reason(jsonl, tmp_path: Path, tokenizer_json: Path) -> None:
    texts = make_texts(40)
    source, val = jsonl([*texts, texts[0], *LOOPS, "甲", texts[1] + "！"]), jsonl(["甲"], "val.jsonl")
    manifest = prepare([source], tmp_path / "out", tokenizer=tokenizer_json, val_inputs=[val], dedup="near")
    report = CorpusReport.read(tmp_path / "out")
    found = {why: (left.documents, left.bytes) for why, left in (report.left_out or {}).items()}
    near = found.pop("near")
    assert found == {
        "exact": (1, len(texts[0].encode())),
        "repetition": (10, sum(len(loop.encode()) for loop in LOOPS)),
        "overlap": (1, 3),
    }
    assert near[0] == report.duplicates.near > 0
    line = left_out_line(manifest, report)
    assert "10 documents that repeat themselves (--repetition keep takes them), 0.0 MB or about " in line
    assert "10 of 51 documents left out, 0.0 MB or about" in "\n".join(" ".join(lines(manifest, report)).split("\n"))
