"""The loss of the mean of a run's last checkpoints, beside that of the last one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from corpus.shards import Corpus
from evaluation.opened_model import open_own
from evaluation.rows import measured_rows
from model import CausalLM
from training.checkpointing.earlier_runs import checkpoints_in
from training.engine.internals import MASTER

_ROWS_AT_ONCE = 64


def averages(run: Path, data: Path, seq_len: int, most: int) -> Iterator[tuple[int, float]]:
    """Yield (n, bits a byte of the held-out text) for the mean of a one-process run's last 1, 2, ... checkpoints.

    The weights are the optimizer's own, in fp32.
    """
    model, _ = open_own(run / "model")
    model, corpus = model.float().eval(), Corpus.open(data, verify="size")
    weights = [
        _weights(path / "rank-00000.safetensors", model) for path in reversed(checkpoints_in(run / "checkpoints"))
    ]
    for count in range(1, 1 + min(most, len(weights))):
        mean = {name: torch.stack([one[name] for one in weights[:count]]).mean(0) for name in weights[0]}
        model.load_state_dict(mean, strict=True, assign=True)
        yield count, _bits_per_byte(model, corpus, seq_len)


def _weights(share: Path, model: CausalLM) -> dict[str, Tensor]:
    """Return a share's weights by name: its pieces are called kind|name|start."""
    pieces: defaultdict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for key, values in load_file(share).items():
        kind, name, start = key.split("|")
        if kind == MASTER:
            pieces[name].append((int(start), values))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return {name: torch.cat([part for _, part in sorted(found)]).view(shapes[name]) for name, found in pieces.items()}


@torch.inference_mode()
def _bits_per_byte(model: CausalLM, corpus: Corpus, seq_len: int) -> float:
    stream = corpus.split("val")
    rows, length = measured_rows(stream, 0, seq_len)
    total = tokens = 0
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        ids = torch.from_numpy(stream.batch(rows[start : start + _ROWS_AT_ONCE], length))
        total += float(model.loss_sum(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()))
        tokens += ids[:, 1:].numel()
    return total / tokens / math.log(2) / corpus.manifest.splits["val"].bytes_per_target
