"""What the checks of memory and speed make of what was measured."""

from training.preflight.cost_checks import Cost, Workload, check_speed, smaller_batch


def test_hours_and_what_would_fit():
    cost, workload = Cost(0.9, 0.1, 0.5, 2**30, True), Workload(1000, 10_000, 1, 5.0, 40)
    assert check_speed(cost, workload, None).text.startswith("10,000 tokens/s, 17 min 00 s for 1,000 steps")
    assert check_speed(cost, workload, 1100).level == "pass"
    assert "--epochs 2.5" in check_speed(cost, workload, 510).hint
    assert "would fit" not in check_speed(cost, workload, 0.5).hint  # not even a step does


def test_a_smaller_batch_keeps_the_global_one():
    class Resolved:
        micro_batch, accumulation, train_batch = 12, 4, 96

    assert "per_gpu=6 gradient_accumulation_steps=8 train_batch_size=96" in smaller_batch(Resolved)
    Resolved.micro_batch = 1
    assert "--max_seq_len" in smaller_batch(Resolved)
