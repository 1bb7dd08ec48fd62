"""Which batches a run skips after it has gone back to a checkpoint; whole runs are in test_divergence.py."""

from training.checkpointing.run_state import RunState
from training.rollback import without_batch


def test_the_batch_is_skipped_and_what_only_the_run_knows_is_kept():
    saved = RunState(step=4, best_loss=3.0, alarms=["flat_loss"], seconds=4.0, wall_seconds=9.0)
    before = RunState(step=6, best_loss=2.5, alarms=["flat_loss", "overfitting"], wall_seconds=20.0, total_steps=12)
    state, skipped = without_batch(saved, before, 6)
    assert (state.step, state.best_loss, state.alarms, state.seconds) == (4, 3.0, ["flat_loss"], 4.0)
    assert (state.skipped_batches, state.rollbacks, state.wall_seconds, state.total_steps) == ([6], 1, 20.0, 12)
    assert skipped == "batch 6"


def test_if_one_batch_was_not_enough_all_since_the_checkpoint_are_skipped():
    before = RunState(step=8, skipped_batches=[2, 7], rollbacks=1)
    state, skipped = without_batch(RunState(step=4, skipped_batches=[2]), before, 8)
    assert (state.skipped_batches, state.rollbacks, skipped) == ([2, 5, 6, 7, 8], 2, "batches 5 to 8")


def test_a_batch_skipped_before_the_checkpoint_is_no_second_try():
    state, skipped = without_batch(RunState(step=4, skipped_batches=[2]), RunState(step=6, skipped_batches=[2]), 7)
    assert (state.skipped_batches, skipped) == ([2, 7], "batch 7")
