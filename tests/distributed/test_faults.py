"""The bench of planted faults (stress/faults), in small: some faults trained and judged, and its bookkeeping."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corpus.shards import Corpus
from diagnosis.report.messages import Messages
from evaluation.repetition import repetition_rate
from stress.faults import judge
from stress.faults.__main__ import good, main, table
from stress.faults.cases import CASES, FAULTS, HEALTHY, MUON_FAULTS, MUON_RATES, SETTINGS, Setting
from stress.faults.corpora import COPIES, Texts, copied, prepared, repeating
from stress.faults.judge import Bench, Verdict
from stress.faults.plants import PLANTS

TINY = Setting(
    "stories",
    2,
    40,
    {"lr": 4e-3},
    {
        "max_seq_len": 64,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "moe_intermediate_size": 32,
        "intermediate_size": 64,
        "use_moe": False,
    },
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("faults")
    corpora = {"stories": prepared("stories", folder / "corpora", Texts(stories=800))}
    return Bench(folder / "runs", TINY, corpora, with_preflight=False)


@pytest.mark.slow
def test_the_right_cause_is_named_first(bench):
    case = next(case for case in FAULTS if case.name == "not_shifted")
    bench.train(case)
    verdict = bench.judge(case)
    assert verdict.right, verdict
    assert verdict.steps == TINY.steps
    assert not (bench.folder / "preflight").exists()


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["padding_counted", "targets_shifted_by_two"])
def test_every_plant_fits_the_code_it_spoils(bench, targets):
    """All in one process: of those that change the targets the last one counts."""
    plants = [plant for plant in PLANTS if not plant.startswith(("targets", "padding"))]
    case = replace(FAULTS[0], name=targets, plant=",".join([*plants, targets]), steps=2, flags={"use_moe": True})
    bench.train(replace(case, overrides={}))


def test_a_finished_run_is_used_again_and_another_command_is_not(tmp_path, monkeypatch):
    calls = []

    def call(arguments, log):
        calls.append(arguments)
        run = Path(arguments[arguments.index("--output") + 1])
        run.mkdir(parents=True)  # fails where an older run was left
        (run / "summary.json").write_text("{}", encoding="utf-8")
        return 0

    monkeypatch.setattr(judge, "_call", call)
    case = FAULTS[0]
    for setting, trained in ((TINY, 1), (TINY, 1), (replace(TINY, steps=4), 2)):
        Bench(tmp_path, setting, {"stories": tmp_path}).train(case)
        assert len(calls) == trained
    assert all(call[-1] == "--skip_preflight" for call in calls)


@pytest.mark.parametrize(("setting", "faults", "healthy"), [("a", 14, 5), ("b", 14, 5), ("muon", 20, 13)])
def test_every_case_is_complete(setting, faults, healthy):
    cases = CASES[setting]
    assert [sum(bool(case.expected) is fault for case in cases) for fault in (True, False)] == [faults, healthy]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert all(case.plant == "none" for case in cases if not case.expected)


def test_every_plant_is_planted():
    assert {case.plant for case in (*FAULTS, *MUON_FAULTS)} == {"none", *PLANTS}


def test_the_settings_share_neither_text_nor_seed_nor_size():
    a, b = SETTINGS["a"], SETTINGS["b"]
    for case in (*FAULTS, *HEALTHY):
        first, second = (case.arguments(s, Path("corpus"), Path("run")) for s in (a, b))
        assert _value(first, "--seed") != _value(second, "--seed")
    assert a.corpus != b.corpus
    assert a.flags["hidden_size"] != b.flags["hidden_size"]


def test_a_case_changes_the_rate_by_its_factor():
    def rates(name: str, setting: Setting) -> dict[str, float]:
        case = next(case for case in (*FAULTS, *MUON_FAULTS) if case.name == name)
        parts = case.arguments(setting, Path("corpus"), Path("run"))
        pairs = (part.removeprefix("optimizer.params.").split("=") for part in parts if "params." in part)
        return {key: float(value) for key, value in pairs if key.endswith("lr")}

    assert rates("rate_too_high", TINY) == pytest.approx({"lr": 100 * TINY.rates["lr"]})
    both = {key: 100 * rate for key, rate in MUON_RATES.items()}
    assert rates("rate_too_high", SETTINGS["muon"]) == pytest.approx(both)
    assert rates("muon_half_too_high", SETTINGS["muon"]) == pytest.approx(MUON_RATES | {"muon_lr": both["muon_lr"]})


def test_every_second_document_is_copied():
    documents = [str(number) for number in range(10)]
    many = copied(documents)
    assert sorted(set(many)) == documents
    assert [many.count(text) for text in documents] == [1, COPIES] * 5


def test_a_repeating_document_is_one_that_repeats_itself():
    text = repeating("小明去上学。他看见一只猫。天黑了。完。")
    assert text.count("小明去上学。") == text.count("天黑了。") == 6
    assert "完" not in text
    assert repetition_rate([ord(character) for character in text]) > 0.5


def test_the_copied_corpus_keeps_its_copies(tmp_path):
    corpus = Corpus.open(prepared("stories_copied", tmp_path, Texts(stories=300)))
    whole = Corpus.open(tmp_path / "stories")
    assert corpus.manifest.splits["train"].documents > 5 * whole.manifest.splits["val"].documents
    assert Counter(_documents(corpus)).most_common(1)[0][1] == COPIES
    assert corpus.manifest.tokenizer_sha256 == whole.manifest.tokenizer_sha256
    with pytest.raises(ValueError, match="no corpus"):
        prepared("stories_upside", tmp_path, Texts(stories=300))


@pytest.mark.parametrize(
    ("expected", "causes", "preflight", "right"),
    [
        (["rate_too_high", "diverged"], [("diverged", 0.8)], [("overfit", "fail")], True),
        (["rate_too_high"], [("overfitted", 0.9), ("rate_too_high", 0.8)], None, False),
        (["rate_too_high"], [], None, False),
        ([], [], [("warm_up", "warn")], True),
        ([], [], [("targets", "fail")], False),
        ([], [("undertrained", 0.7)], [], False),
    ],
)
def test_right_is_the_cause_named_first_and_a_healthy_run_left_in_peace(expected, causes, preflight, right):
    assert Verdict("case", expected, 10, 2.0, "below_bigram", causes, preflight, False).right is right


def test_the_bench_is_good_with_ten_of_fourteen_and_no_healthy_run_accused():
    def verdicts(named: int, accused: int) -> list[Verdict]:
        first = ["diverged" if i < named else "overfitted" for i in range(14)]
        faults = [
            Verdict(f"f{i}", ["diverged"], 1, 1.0, None, [(cause, 1.0)], [], True) for i, cause in enumerate(first)
        ]
        return faults + [
            Verdict(f"h{i}", [], 1, 1.0, None, [("diverged", 1.0)] if i < accused else [], [], False) for i in range(5)
        ]

    assert good(verdicts(10, 0))
    assert not good(verdicts(9, 0))
    assert not good(verdicts(14, 1))
    assert "Faults named first: 10 of 14; healthy runs left in peace: 4 of 5." in table(verdicts(10, 1))


def test_a_case_that_does_not_exist_is_named(tmp_path, capsys):
    assert main(["--output", str(tmp_path), "--only", "few_steps", "sunspots"]) == 2
    assert "sunspots" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_expected_causes_are_ones_that_the_rules_can_find():
    texts = Messages("en").texts
    assert all(f"causes.{cause}.title" in texts for case in CASES["muon"] for cause in case.expected)


def _documents(corpus: Corpus) -> list[bytes]:
    stream, begin = corpus.split("train"), corpus.manifest.bos_id
    ids = stream.read(0, len(stream))
    return [part.tobytes() for part in np.split(ids, np.flatnonzero(ids == begin)[1:])]


def _value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]
