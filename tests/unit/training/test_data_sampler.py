"""The order of the data: epochs that are permutations, shared out alike over any number of processes."""

import numpy as np
import pytest
import torch

from corpus.shards import TokenStream
from training.data_sampler import SampleStream, tensors

CPU = torch.device("cpu")


def batches(order, steps, *, world_size, accumulation, micro_batch, first=0):
    """The rows of each optimizer step, in the order of micro-steps and ranks."""
    spread = {"world_size": world_size, "accumulation": accumulation, "micro_batch": micro_batch}
    found = []
    for step in range(first, first + steps):
        ranks = [order.micro_batches(step, rank, **spread) for rank in range(world_size)]
        found.append([rows for micro_step in zip(*ranks, strict=True) for rows in micro_step])
    return found


def flat(steps):
    return [row for step in steps for micro_batch in step for row in micro_batch]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_is_a_permutation(epoch):
    order = SampleStream(100, seed=1)
    assert sorted(order[epoch * 100 + place] for place in range(100)) == list(range(100))


def test_epochs_and_seeds_differ():
    one, other = SampleStream(100, seed=1), SampleStream(100, seed=2)
    orders = [[stream[first + place] for place in range(100)] for stream in (one, other) for first in (0, 100)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] != sorted(orders[0])


def test_looking_back_into_an_earlier_epoch_changes_nothing():
    order = SampleStream(10, seed=3)
    forward = [order[sample] for sample in range(30)]
    assert [order[sample] for sample in reversed(range(30))] == forward[::-1]


@pytest.mark.parametrize(
    "spread",
    [
        {"world_size": 1, "accumulation": 1, "micro_batch": 24},
        {"world_size": 1, "accumulation": 8, "micro_batch": 3},
        {"world_size": 2, "accumulation": 4, "micro_batch": 3},
        {"world_size": 6, "accumulation": 1, "micro_batch": 4},
    ],
)
def test_a_step_has_the_same_rows_however_it_is_spread(spread):
    # 100 rows in batches of 24: steps cross the ends of epochs
    order = SampleStream(100, seed=4)
    assert flat(batches(SampleStream(100, seed=4), 10, **spread)) == [order[sample] for sample in range(240)]


def test_one_process_accumulates_the_micro_batches_that_two_take_at_once():
    one = batches(SampleStream(50, seed=5), 6, world_size=1, accumulation=4, micro_batch=5)
    two = batches(SampleStream(50, seed=5), 6, world_size=2, accumulation=2, micro_batch=5)
    assert one == two


def test_the_order_is_the_same_when_started_in_the_middle():
    spread = {"world_size": 2, "accumulation": 2, "micro_batch": 3}
    whole = batches(SampleStream(50, seed=6), 20, **spread)
    assert batches(SampleStream(50, seed=6), 9, first=11, **spread) == whole[11:]


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="at least one row"):
        SampleStream(0, seed=1)


def test_targets_are_the_inputs_shifted_by_one():
    ids = torch.randint(0, 9, (41,))
    stream = TokenStream([ids[:17].numpy().astype(np.uint16), ids[17:].numpy().astype(np.uint16)])
    inputs, targets = tensors(stream, [3, 0, 1], 8, CPU)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    for place, row in enumerate([3, 0, 1]):
        assert inputs[place].tolist() == ids[8 * row : 8 * row + 8].tolist()
        assert targets[place].tolist() == ids[8 * row + 1 : 8 * row + 9].tolist()


def test_every_token_but_the_first_is_a_target_once():
    ids = np.arange(33, dtype=np.uint16)
    _, targets = tensors(TokenStream([ids]), [0, 1, 2, 3], 8, CPU)
    assert targets.flatten().tolist() == list(range(1, 33))
