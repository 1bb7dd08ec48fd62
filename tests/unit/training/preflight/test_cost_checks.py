"""What the checks of memory and speed make of what was measured."""

from training.preflight.cost_checks import check_speed, smaller_batch


def checked(seconds_left, epochs=5.0):
    return check_speed(10_000.0, 1020.0, 1000, epochs, seconds_left, full_size=True)


def test_hours_and_what_would_fit():
    assert checked(None).text.startswith("10,000 tokens/s, 17 min 00 s for 1,000 steps")
    assert checked(1100).level == "pass"
    assert "--epochs 2.5" in checked(510).hint
    assert "--max_steps 500" in checked(510, epochs=None).hint
    assert "would fit" not in checked(0.5).hint  # not even a step does


def test_a_smaller_batch_keeps_the_global_one():
    class Resolved:
        micro_batch, accumulation, train_batch = 12, 4, 96

    assert "per_gpu=6 gradient_accumulation_steps=8 train_batch_size=96" in smaller_batch(Resolved)
    Resolved.micro_batch = 1
    assert "--max_seq_len" in smaller_batch(Resolved)
