"""The recipe studies: their shapes and lengths, and the law that extends them."""

from __future__ import annotations

import json
import random

import pytest
import torch

from benchmarks.recipes import __main__ as recipes
from benchmarks.recipes.law import Run, fit, tokens_for
from benchmarks.recipes.studies import LAYERS, SEQ_LEN, STUDIES, Size
from benchmarks.recipes.unlikelihood import candidates
from model import ModelConfig
from training.planning.expected_loss import Law

TRUE = Law(True, 0.55, 1.3, 0.1, 1.6, 0.2)


def runs(noise: float = 0.0) -> list[Run]:
    """Runs at three sizes and four lengths, as TRUE says, but for the noise."""
    rng = random.Random(0)
    places = [(size, size * length) for size in (150e3, 400e3, 800e3) for length in (5, 10, 20, 40)]
    return [Run(*place, TRUE(*place) * (1 + rng.gauss(0, noise))) for place in places]


def test_a_law_is_found_again_beyond_its_runs() -> None:
    assert fit(runs()).expect(2e6, 60e6).loss == pytest.approx(TRUE(2e6, 60e6), rel=0.01)


def test_the_margin_grows_with_noise_and_holds_the_truth() -> None:
    quiet, noisy = (fit(runs(noise)).expect(2e6, 60e6) for noise in (0.001, 0.01))
    assert quiet.margin < noisy.margin
    assert abs(noisy.loss - TRUE(2e6, 60e6)) < noisy.margin


def test_tokens_are_found_by_their_loss() -> None:
    assert tokens_for(TRUE, 2e6, TRUE(2e6, 60e6)) == pytest.approx(60e6)
    with pytest.raises(ValueError):
        tokens_for(TRUE, 2e6, 0.5)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="three sizes"):
        fit(runs()[:4] * 2)


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("hidden", LAYERS)
def test_sizes_are_models_and_lengths_count_their_parameters(hidden: int, experts: bool) -> None:
    size = Size(hidden, experts)
    ModelConfig(vocab_size=4000, **size.fields()).validate()
    study = STUDIES["law"]
    assert study.steps(size, 4000, 10) * study.rows * SEQ_LEN == pytest.approx(10 * size.parameters(4000), rel=0.01)


def test_the_table_and_the_law_are_of_what_was_recorded(tmp_path, monkeypatch) -> None:
    shared = {"study": "law", "hidden": 64, "experts": False, "set": [], "state": "finished"}
    found = [
        shared
        | {"parameters": run.parameters, "tokens": run.tokens, "seed": seed, "bits_per_byte": run.loss + seed / 100}
        for run in runs()
        for seed in (-1, 1)
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
    monkeypatch.setattr(recipes, "RESULTS", path)
    lines = list(recipes.table())
    assert len(lines) == 2 + len(runs()) + 2
    assert "0.0141" in lines[2] and lines[-2].startswith("L = 0.") and lines[-1].endswith("D in millions")
    assert [run.loss for run in recipes.runs("law")] == pytest.approx([run.loss for run in runs()])


def test_equal_runs_are_seldom_called_different_and_unequal_ones_often() -> None:
    rng = random.Random(1)
    equal = [rng.gauss(2.0, 0.01) for _ in range(24)]
    assert recipes.called_different(equal, 3) < 0.1
    assert recipes.called_different([1.0, 1.001, 2.0, 2.001], 2) > 0.2


def test_every_study_has_a_size_and_a_length() -> None:
    assert all(study.sizes and study.tokens_a_parameter and study.seeds for study in STUDIES.values())


def test_a_study_of_shapes_counts_the_parameters_of_what_it_tries() -> None:
    study, size = STUDIES["depth"], Size(64)
    assert "--num_hidden_layers" not in size.flags(study) and "--hidden_size" in size.flags(study)
    shallow, deep = (size.parameters(4000, [f"bufudu.num_hidden_layers={layers}"]) for layers in (1, 6))
    assert shallow < size.parameters(4000) < deep


def test_what_is_punished_stands_in_the_window_and_is_not_next() -> None:
    ids, targets = torch.tensor([[3, 5, 5, 7]]), torch.tensor([[5, 5, 7, 3]])
    found = candidates(ids, targets, window=2, vocabulary=8)
    assert [set(row.nonzero().flatten().tolist()) for row in found[0]] == [{3}, {3}, {5}, {5, 7}]
    assert set(candidates(ids, targets, 4, 8)[0, 3].nonzero().flatten().tolist()) == {5, 7}
