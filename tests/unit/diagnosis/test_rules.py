"""The rules on measurements made by hand: each fault's signs name it first, and a healthy run's signs name nothing."""

from dataclasses import replace
from math import cos, pi
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.ngram_baselines import NGramBaselines
from diagnosis.losses import Losses
from diagnosis.measurements import Measurements, TrainingText, WeightChange
from diagnosis.rules.verdict import find_causes, greedy_loops, parrots
from evaluation.repetition import RepetitionMetrics
from evaluation.run_record import RunRecord

BASELINES = NGramBaselines(uniform=8.0, unigram=6.5, bigram=4.5, trigram=4.0, bytes_per_token=4.0, tokens=10_000)
STEPS = range(0, 201, 10)
TRUE = RepetitionMetrics(repetition=0.03, copying=0.02, distinct_2=0.8, loops=0.0, outputs=32)
LOOPING = RepetitionMetrics(repetition=0.9, copying=0.1, distinct_2=0.1, loops=0.95, outputs=32)
SCHEDULE = {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 20, "total_num_steps": 200}}}


def rows(split, **curves):
    """Rows of metrics at STEPS; each curve is a function of the share of the run that is over."""
    return [
        {"step": step, "split": split, "tokens": step * 1000} | {k: f(step / STEPS[-1]) for k, f in curves.items()}
        for step in STEPS
        if step or split == "val"
    ]


def run(val=lambda t: 8 - 4.4 * t**0.5, train=None, **train_curves):
    """The record of a run of 200 steps."""
    curves = {
        "loss": train or val,
        "lr": lambda t: 1e-3,
        "grad_norm": lambda t: 1.0 - 0.5 * t,
        "update_ratio": lambda t: 0.2,
        "unchanged": lambda t: 0.0,
    } | train_curves
    record = RunRecord(Path("run"), train=rows("train", **curves), val=rows("val", loss=val), ds_config=SCHEDULE)
    best = record.best
    return replace(record, summary={"best_step": best[0], "best_val_loss": best[1]}) if best else record


def losses(loss, pad=0.0, **offsets):
    """Losses of a model that predicts the next token best, unless the offsets say otherwise."""
    found = {0: loss + 4, 1: loss, 2: loss + 2, 3: loss + 3} | {int(k[1:]): v for k, v in offsets.items()}
    return Losses(loss, 0.0, found, pad)


def healthy(**changes):
    """The measurements of a run that went well; its greedy text loops, as that of small models does."""
    measured = Measurements(
        vocab_size=2981,
        run=run(),
        parameters=1_000_000,
        baselines=BASELINES,
        held_out=losses(3.6),
        train=losses(3.55),
        true=TRUE,
        sampled=RepetitionMetrics(0.02, 0.02, 0.82, 0.0, 32),
        greedy=LOOPING,
        training_text=TrainingText(duplicates=0.01, copies=3, repetitive=0.01),
        weights=WeightChange(moved=1.5, grown=1.8, embedding_moved=9.0, smallest_norm=0.6),
        expert_load=[[0.3, 0.2, 0.2, 0.3]] * 4,
        recorded_val_loss=3.6,
    )
    return replace(measured, **changes)


def first(measured):
    found = find_causes(measured)
    return found[0].id if found else None


def test_a_healthy_run_has_no_cause_and_does_not_parrot():
    assert find_causes(healthy()) == []
    assert not parrots(healthy())
    assert greedy_loops(healthy())


@pytest.mark.parametrize(
    ("without", "value"),
    [
        ("run", None),
        ("held_out", None),
        ("train", None),
        ("true", None),
        ("sampled", None),
        ("greedy", None),
        ("training_text", None),
        ("weights", None),
        ("expert_load", None),
        ("recorded_val_loss", None),
        ("baselines", None),
        ("run", RunRecord(Path("run"))),
    ],
)
def test_missing_measurements_accuse_nobody(without, value):
    assert find_causes(healthy(**{without: value})) == []


def test_no_measurements_at_all_accuse_nobody():
    assert find_causes(Measurements(vocab_size=100)) == []


def slow(t):
    return 8 - 0.15 * t


DECAYED = SCHEDULE | {"optimizer": {"params": {"weight_decay": 0.5}}}
CASES = {
    "targets_shifted": healthy(
        held_out=losses(6.2, o2=3.9), train=losses(6.2), run=run(lambda t: 8 - 4 * t**0.5), recorded_val_loss=4.0
    ),
    "future_leak": healthy(
        held_out=losses(9.0, o0=0.01), train=losses(9.0), run=run(lambda t: 8 * (1 - t)), recorded_val_loss=0.01
    ),
    "padding_in_loss": healthy(
        held_out=losses(5.2, pad=0.99), train=losses(5.1), recorded_val_loss=2.5, run=run(lambda t: 8 - 5.5 * t**0.5)
    ),
    "embedding_scale": healthy(
        run=run(lambda t: 30 - 25 * t**0.3), held_out=losses(5.0), train=losses(5.0), recorded_val_loss=5.0
    ),
    "low_precision_weights": healthy(
        run=run(lambda t: 8 - t, unchanged=lambda t: 0.8),
        held_out=losses(7.0),
        train=losses(7.0),
        recorded_val_loss=7.0,
    ),
    "gradients_kept": healthy(
        run=run(lambda t: 8 - t, grad_norm=lambda t: 0.2 + 40 * t),
        held_out=losses(7.0),
        train=losses(7.0),
        recorded_val_loss=7.0,
    ),
    "rate_too_low": healthy(
        run=run(slow, update_ratio=lambda t: 0.004),
        held_out=losses(7.85),
        train=losses(7.85),
        weights=WeightChange(0.03, 1.0, 0.05, 0.6),
        recorded_val_loss=7.85,
    ),
    "rate_too_high": healthy(
        run=run(lambda t: 8 + 20 * t * (1 - t)),
        held_out=losses(7.2),
        train=losses(7.2),
        weights=WeightChange(60.0, 60.0, 80.0, 0.6),
        recorded_val_loss=7.2,
    ),
    "norms_decayed": healthy(
        run=replace(run(lr=lambda t: 0.02), ds_config=DECAYED),
        weights=WeightChange(2.3, 2.3, 10.0, 0.01),
    ),
    "schedule_over": healthy(run=run(lr=lambda t: max(0.0, 1e-3 * (1 - 2 * t)))),
    "diverged": healthy(finite=False, held_out=None, train=None, run=run(lambda t: 8 - 4 * t if t < 0.5 else None)),
    "evaluation_differs": healthy(recorded_val_loss=3.9),
    "router_collapsed": healthy(expert_load=[[0.5, 0.5, 0.0, 0.0]] * 4),
    "duplicates": healthy(training_text=TrainingText(0.9, 20, 0.01), train=losses(2.9)),
    "repetitive_data": healthy(training_text=TrainingText(0.0, 1, 0.6), true=RepetitionMetrics(0.5, 0.3, 0.3, 0.4, 32)),
    "overfitted": healthy(
        run=run(lambda t: 6 - 3 * t if t < 0.5 else 4 + t, lambda t: 6 - 4 * t),
        train=losses(2.5),
        held_out=losses(4.2),
        recorded_val_loss=4.2,
    ),
    "undertrained": healthy(
        run=run(lambda t: 8 - 1.5 * t), held_out=losses(6.5), train=losses(6.5), recorded_val_loss=6.5
    ),
    "not_learning": healthy(run=run(lambda t: 7.2), held_out=losses(7.2), train=losses(7.2), recorded_val_loss=7.2),
    "decoding": healthy(greedy_by_default=True),
}


@pytest.mark.parametrize("fault", CASES)
def test_each_fault_is_named_first(fault):
    assert first(CASES[fault]) == fault


def test_high_rate_without_warm_up_is_distinguished_from_one_with():
    flat = {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 0, "total_num_steps": 200}}}
    measured = CASES["rate_too_high"]
    assert first(replace(measured, run=replace(measured.run, ds_config=flat))) == "no_warmup"
    assert first(replace(measured, run=replace(measured.run, ds_config={}))) == "rate_too_high"


def test_a_schedule_that_ends_with_the_run_is_none_that_is_over():
    assert find_causes(healthy(run=run(lr=lambda t: 5e-4 * (1 + cos(pi * t))))) == []
    assert find_causes(healthy(run=run(lr=lambda t: max(1e-4, 1e-3 * (1 - 2 * t))))) == []


def test_weights_that_rest_with_the_rate_are_not_lost_to_rounding():
    over = run(lr=lambda t: max(0.0, 1e-3 * (1 - 3 * t)), unchanged=lambda t: float(t > 1 / 3))
    assert [cause.id for cause in find_causes(healthy(run=over))] == ["schedule_over"]


def test_small_norms_without_strong_weight_decay_are_the_runs_own():
    small = WeightChange(2.3, 2.3, 10.0, 0.01)
    assert find_causes(healthy(weights=small)) == []
    assert find_causes(healthy(weights=small, run=replace(run(), ds_config=DECAYED))) == []  # 1e-3 x 0.5 x 200 steps


def test_dead_experts_do_not_pass_for_updates_that_round_away():
    measured = replace(CASES["router_collapsed"], run=run(unchanged=lambda t: 0.45))
    assert [cause.id for cause in find_causes(measured)] == ["router_collapsed"]


def test_gradients_that_grew_most_at_the_start_were_kept_if_they_never_shrank():
    def grown(least: float) -> Measurements:
        return healthy(run=run(grad_norm=lambda t: least + 1600 * max(0.0, t - 0.05) ** 0.5))

    assert first(grown(40)) == "gradients_kept"
    assert find_causes(grown(900)) == []


def test_wrong_targets_are_not_blamed_on_the_evaluation_too():
    assert [cause.id for cause in find_causes(CASES["targets_shifted"])] == ["targets_shifted"]


def test_a_recorded_loss_shows_the_targets_before_they_are_learned():
    early = healthy(
        held_out=losses(6.6, o0=4.1), train=losses(6.6), run=run(lambda t: 6.3 - 2.2 * t), recorded_val_loss=4.1
    )
    assert [cause.id for cause in find_causes(early)] == ["future_leak"]
    shifted = healthy(
        held_out=losses(6.6, o2=6.0), train=losses(6.6), run=run(lambda t: 6.3 - 0.3 * t), recorded_val_loss=6.0
    )
    assert [cause.id for cause in find_causes(shifted)] == ["targets_shifted"]
    hard = healthy(
        held_out=losses(6.502, o2=6.394), train=losses(6.5), run=run(lambda t: 7.6 - 1.2 * t), recorded_val_loss=6.394
    )  # little was learned, but the recorded loss is to the last digit that of the other token
    assert [cause.id for cause in find_causes(hard)] == ["targets_shifted"]
    assert first(replace(hard, recorded_val_loss=6.40)) == "evaluation_differs"
    tied = healthy(
        held_out=losses(6.6, o0=6.1), train=losses(6.6), run=run(lambda t: 8 - 1.4 * t), recorded_val_loss=6.6
    )  # untrained, tied embeddings: the last token fits best
    assert first(tied) == "undertrained"


def test_a_rate_too_high_is_found_though_the_model_learned_in_the_end():
    assert (
        first(healthy(run=run(update_ratio=lambda t: 30 * (1 - t)), weights=WeightChange(50.0, 50.0, 60.0, 0.6)))
        == "rate_too_high"
    )
    assert find_causes(healthy(weights=WeightChange(50.0, 50.0, 60.0, 0.6))) == []


def test_each_half_of_muon_and_adamw_is_judged_by_its_own_weights():
    slept = replace(CASES["rate_too_low"], run=run(slow), weights=WeightChange(4.0, 4.5, 0.2, 0.6))
    assert first(slept) == "rate_too_low"
    assert "embedding_barely_moved" in find_causes(slept)[0].reasons
    long = healthy(weights=WeightChange(12.0, 12.5, 2000.0, 0.6))
    assert find_causes(long) == []  # both go on growing in a healthy run


def test_weights_that_barely_moved_because_updates_are_lost_are_not_blamed_on_the_rate():
    lost = replace(CASES["rate_too_low"], run=run(slow, update_ratio=lambda t: 0.004, unchanged=lambda t: 0.7))
    assert [cause.id for cause in find_causes(lost)] == ["low_precision_weights"]


def test_the_last_steps_of_a_schedule_that_ends_at_0_lose_no_updates():
    """601 steps with a line every 100: the last line is of one step, at a hundred-thousandth of the peak."""
    lines = [(100, 0.02, 0.0), (300, 0.012, 0.0), (500, 1.7e-3, 0.0), (600, 7e-7, 0.0), (601, 2e-7, 0.2)]

    def ended(at_last: float) -> Measurements:
        train = [
            {"step": step, "split": "train", "loss": 5.8, "lr": rate, "unchanged": unchanged or at_last}
            for step, rate, unchanged in lines
        ]
        return healthy(run=replace(run(), train=train))

    assert find_causes(ended(0.0)) == []
    assert first(ended(0.4)) == "low_precision_weights"


def test_the_rate_is_not_assessed_during_the_warm_up():
    early = CASES["rate_too_low"]
    long = {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 150, "total_num_steps": 9000}}}
    assert first(replace(early, run=replace(early.run, ds_config=long))) != "rate_too_low"


def test_a_model_above_the_bigram_that_loops_parrots():
    assert parrots(CASES["undertrained"])
    assert parrots(healthy(sampled=LOOPING))


@given(st.floats(0, 20), st.floats(0, 20), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3))
def test_finding_causes_never_fails_and_confidence_is_a_share(held_out, train, share, other, offset):
    measured = healthy(
        held_out=losses(held_out, **{f"o{offset}": train}),
        train=losses(train),
        training_text=TrainingText(share, 5, other),
        weights=WeightChange(share, 100 * other, 400 * share, other),
        run=run(unchanged=lambda t: other, grad_norm=lambda t: 20 * share * t),
        sampled=RepetitionMetrics(share, None, other, None, 3),
    )
    found = find_causes(measured)
    assert all(0 < cause.confidence <= 1 for cause in found)
    assert [cause.confidence for cause in found] == sorted((cause.confidence for cause in found), reverse=True)
