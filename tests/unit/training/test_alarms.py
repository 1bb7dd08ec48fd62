"""Alarms on histories made by hand: each sick one raises its own and no other, healthy ones raise none."""

import math
import random

import pytest

from common.files import read_json_lines
from training.monitoring.alarms import Alarms, experts_in_use

UNIGRAM = 6.5
EVEN = [[0.25] * 4] * 2


def train_row(step, loss, *, norm=1.0, load=None, entropy=0.9, scale=None, skipped=0):
    row = {
        "step": step,
        "split": "train",
        "loss": loss,
        "grad_norm": norm,
        "skipped_steps": skipped,
        "expert_load": load or EVEN,
        "router_entropy": [entropy] * 2,
    }
    return row if scale is None else row | {"loss_scale": scale}


def val_row(step, loss):
    return {"step": step, "split": "val", "loss": loss}


class Judge(Alarms):
    """Alarms that remember what they have reported: (name, step), and the last message."""

    def __init__(self, **more):
        self.found, self.message = [], ""
        defaults = {"unigram": UNIGRAM, "warmup": 50, "experts_per_token": 2, "raised": [], "report": self.note}
        super().__init__(**(defaults | more))

    def note(self, step, name, message):
        self.found.append((name, step))
        self.message = message


def judged(rows, judge=None, **more):
    judge = judge or Judge(**more)
    for row in rows:
        judge.observe(row)
    return judge


def raised(rows, **more):
    return judged(rows, **more).found


def healthy_loss(step):
    """Above the unigram rung while warming up, then a power law."""
    return 8.76 - 2.3 * min(1, step / 60) - 3.5 * (1 - (1 + max(0, step - 60) / 100) ** -0.5)


def healthy(steps=3000, every=50, noise=0.05, seed=0):
    luck = random.Random(seed)
    for step in [1, *range(every, steps + 1, every)]:
        spike = 4 if luck.random() < 0.03 else 1
        yield train_row(
            step,
            healthy_loss(step) + luck.gauss(0, noise),
            norm=(0.4 + 3 / (1 + step / 50)) * spike,
            load=[[0.4, 0.3, 0.2, 0.1], [0.31, 0.19, 0.26, 0.24]],
        )
        if step % (4 * every) == 0:
            yield val_row(step, healthy_loss(step) + 0.1 + luck.gauss(0, 0.005))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("steps", "every", "noise"), [(3000, 50, 0.05), (300, 10, 0.2), (60, 1, 0.3), (12, 1, 0.3)])
def test_a_healthy_run_raises_none(steps, every, noise, seed):
    assert raised(healthy(steps, every, noise, seed)) == []


def test_a_run_of_muon_whose_norm_never_moves():
    rows = [train_row(step, healthy_loss(step), norm=124.0) for step in range(10, 2000, 10)]
    assert raised(rows) == []


def test_a_loss_at_its_floor_below_the_frequencies_is_no_flat_loss():
    assert raised([train_row(step, 3.2) for step in range(50, 5000, 50)]) == []


def test_a_run_too_short_to_judge():
    assert raised([train_row(step, 8.7) for step in range(1, 240)]) == []


def test_a_loss_that_stands_still_above_the_frequencies():
    luck = random.Random(1)
    rows = [train_row(step, 7.42 + luck.gauss(0, 0.05)) for step in range(10, 1000, 10)]
    [(name, step)] = raised(rows)
    assert name == "flat_loss"
    assert 250 <= step <= 400


def test_a_loss_that_still_falls_is_given_more_time_but_not_for_ever():
    rows = [train_row(step, 8.7 - step * 0.0012) for step in range(10, 1500, 10)]
    assert raised(rows) == [("flat_loss", 1050)]


def test_the_message_says_what_was_seen_and_what_to_do():
    message = judged(train_row(step, 7.42) for step in range(10, 1000, 10)).message
    for part in ("7.42 nats", "6.50", "more steps will not change", "--preflight"):
        assert part in message


def test_each_is_raised_once_also_over_sessions():
    told = []
    rows = [train_row(step, 7.4) for step in range(10, 2000, 10)]
    assert len(raised(rows, raised=told)) == 1
    assert told == ["flat_loss"]
    assert raised(rows, raised=told) == []


def test_a_continued_run_judges_by_its_whole_history():
    rows = [train_row(step, 7.4) for step in range(10, 1000, 10)]
    ((_, when),) = raised(rows)
    judge = Judge()
    judge.remember(row for row in rows if row["step"] < when)
    assert judged((row for row in rows if row["step"] >= when), judge).found == [("flat_loss", when)]


@pytest.mark.parametrize(
    ("load", "choices", "collapsed"),
    [
        ([0.5, 0.5, 0.0, 0.0], 2, True),
        ([0.49, 0.49, 0.01, 0.01], 2, True),
        ([0.5, 0.25, 0.24, 0.01], 2, False),
        ([0.97, 0.01, 0.01, 0.01], 1, True),
        ([0.34, 0.33, 0.33, 0.0], 1, False),
        ([0.5, 0.5], 2, False),  # there is nothing to choose
        ([1 / 64] * 64, 2, False),
        ([0.25] * 4 + [0.0] * 60, 2, True),
    ],
)
def test_a_router_that_has_collapsed(load, choices, collapsed):
    rows = [train_row(step, healthy_loss(step), load=[EVEN[0], load]) for step in range(60, 300, 10)]
    assert raised(rows, experts_per_token=choices) == ([("router_collapsed", 80)] if collapsed else [])


def test_a_router_may_be_skewed_while_it_warms_up_or_for_a_moment():
    rows = [
        train_row(step, healthy_loss(step), load=[[0.5, 0.5, 0, 0]] if step <= 50 or step % 30 else EVEN[:1])
        for step in range(10, 400, 10)
    ]
    assert raised(rows) == []


def test_a_router_may_swing_from_expert_to_expert():
    one = [[float(expert == chosen) for expert in range(4)] for chosen in range(4)]
    swinging = [train_row(step, healthy_loss(step), load=[one[step // 10 % 4]] * 2) for step in range(60, 300, 10)]
    assert raised(swinging, experts_per_token=1) == []


def test_a_few_steps_are_no_trend_where_each_has_its_line():
    """The steps after a warm-up of ten, as a run of 100 at hidden 256 had them."""
    losses = [8.8 - step / 10 for step in range(9)] + [8.0, 9.0, 9.5, 9.5, 9.3, 9.0, 8.4] + [7.5] * 60
    rows = [
        train_row(step, loss, load=[[0.99, 0.01, 0, 0]] * 2 if step < 20 else EVEN) for step, loss in enumerate(losses)
    ]
    assert raised(rows, warmup=5, experts_per_token=1) == []
    collapsed = [train_row(step, 7.0, load=[[0.99, 0.01, 0, 0]] * 2) for step in range(100)]
    assert raised(collapsed, warmup=5, experts_per_token=1)[0] == ("router_collapsed", 26)
    climbing = [train_row(step, 5.0 if step < 50 else 5.0 + (step - 50) / 10) for step in range(100)]
    assert [name for name, _ in raised(climbing, warmup=5)] == ["exploding_gradients"]


def test_the_collapsed_layer_is_named_with_its_load_and_entropy():
    rows = [
        train_row(step, healthy_loss(step), load=[EVEN[0], [0.5, 0.5, 0, 0]], entropy=0.07)
        for step in range(60, 100, 10)
    ]
    message = judged(rows).message
    for part in ("layer 1", "2.0 of 4 experts", "0.50, 0.50, 0.00, 0.00", "0.07", "--router_aux_loss_coef"):
        assert part in message


def test_a_dense_model_has_no_router():
    rows = [
        {name: value for name, value in row.items() if name not in ("expert_load", "router_entropy")}
        for row in healthy()
    ]
    assert raised(rows) == []


def test_experts_in_use():
    assert experts_in_use([0.25] * 4) == pytest.approx(4)
    assert experts_in_use([1, 0, 0]) == 1
    assert experts_in_use([0.5, 0.5, 0, 0]) == pytest.approx(2)


@pytest.mark.parametrize(("norm", "lines", "exploded"), [(30, 2, True), (30, 1, False), (8, 5, False), (1e9, 2, True)])
def test_a_norm_far_beyond_its_usual(norm, lines, exploded):
    rows = [train_row(step, healthy_loss(step), norm=1.0 + step % 3) for step in range(10, 500, 10)]
    rows += [train_row(500 + 10 * i, healthy_loss(500), norm=norm) for i in range(lines)]
    assert raised(rows) == ([("exploding_gradients", 510)] if exploded else [])


def test_a_loss_that_climbs_back():
    rows = [train_row(step, 4.0 if step < 500 else 4.0 + (step - 500) / 50) for step in range(10, 1000, 10)]
    (name, step), *more = raised(rows)
    assert name == "exploding_gradients"
    assert 550 <= step <= 600
    assert [name for name, _ in more] in ([], ["flat_loss"])


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_loss_that_is_no_number(loss):
    assert raised([train_row(10, 8.0), train_row(20, loss)]) == [("exploding_gradients", 20)]


def test_one_overflow_in_fp16_is_no_alarm():
    rows = [
        train_row(10, 8.0, scale=1024.0),
        train_row(20, None, norm=None, scale=1024.0),
        *(train_row(step, 8.0, scale=512.0) for step in range(30, 60, 10)),
    ]
    assert raised(rows) == []


def run_of_steps(outcomes, scale):
    judge = Judge()
    for step, skipped in enumerate(outcomes, 1):
        scale = scale / 2 if skipped and scale else scale
        judge.stepped(step, skipped=skipped, loss_scale=scale)
    return judge.found


@pytest.mark.parametrize(
    ("outcomes", "scale", "found"),
    [
        ("sss" + "." * 50 + "s....s" + "." * 20, 2.0**16, []),  # a search, then an overflow now and then
        ("s" * 14 + "." * 50, 2.0**24, []),  # a search from too high a scale
        ("s" * 20, 2.0**16, [("skipped_steps", 8)]),
        ("s" * 30, 2.0**24, [("skipped_steps", 16)]),
        (".." + "s" * 7 + "." * 5, 2.0**16, []),
        (".." + "s" * 30, 2.0**16, [("skipped_steps", 10)]),
        ("." * 30, None, []),
    ],
)
def test_steps_skipped_in_a_row(outcomes, scale, found):
    assert run_of_steps([letter == "s" for letter in outcomes], scale) == found


def test_a_continued_run_has_searched_its_scale_already():
    judge = Judge()
    judge.remember([train_row(10, 5.0, scale=2.0**16, skipped=3)])
    for step in range(11, 30):
        judge.stepped(step, skipped=True, loss_scale=2.0**16)
    assert judge.found == [("skipped_steps", 18)]


def overfitted(rise=0.05, fall=0.05):
    """Training falls all the time, validation until step 500."""
    for step in range(50, 1001, 50):
        yield train_row(step, 5 - step * fall / 50)
        yield val_row(step, 4 - min(step, 500) / 500 + max(0, step - 500) / 50 * rise)


def test_validation_that_rises_while_training_falls():
    assert raised(overfitted()) == [("overfitting", 650)]


def test_both_rising_is_not_overfitting():
    assert raised(overfitted(fall=-0.01)) == []


def test_validation_that_has_only_stopped_falling():
    assert raised(overfitted(rise=0.001)) == []


def test_one_better_evaluation_starts_the_count_anew():
    rows = [row for row in overfitted() if row["step"] <= 600]
    rows += [val_row(610, 2.9), val_row(620, 3.1), val_row(630, 3.2)]
    assert raised(rows) == []


def test_rows_are_read_from_a_file_if_there_is_one(tmp_path):
    assert list(read_json_lines(tmp_path / "metrics.jsonl")) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 2]
