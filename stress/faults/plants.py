"""The faults, each a function that spoils the code of this process for good: call it before training.run is imported.

The faults are put where the real mistake would be made (the batch, the start, the optimizer), so that preflight, which
runs the same code, meets them too; diagnose.py runs in a process of its own and meets only the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Batch = tuple[Tensor, Tensor]
EMBEDDING_TIMES = 50.0  # 0.02 becomes PyTorch's own start of an embedding, a deviation of 1
DROPOUT = 0.2
ROUTER_BIAS = 0.2


def targets_shifted_by_two() -> None:
    """The target is the token after the next."""
    _change_batches(lambda ids: (ids[:, :-2].contiguous(), ids[:, 2:].contiguous()))


def targets_not_shifted() -> None:
    """The target is the token itself: the answer stands in the input."""
    _change_batches(lambda ids: (ids[:, :-1].contiguous(), ids[:, :-1].contiguous()))


def _change_batches(cut: Callable[[Tensor], Batch]) -> None:
    import training.data_sampler as sampler

    def tensors(stream: Any, rows: Sequence[int], seq_len: int, device: torch.device) -> Batch:
        ids, targets = cut(torch.from_numpy(stream.batch(rows, seq_len)))
        return ids.to(device), targets.to(device)

    sampler.tensors = tensors  # type: ignore[assignment]


def padding_counted() -> None:
    """One document a row, filled up with padding that the loss counts."""
    import training.data_sampler as sampler
    from model.config import ModelConfig

    begin, padding = ModelConfig.bos_token_id, ModelConfig.pad_token_id
    starts: dict[int, np.ndarray] = {}

    def tensors(stream: Any, rows: Sequence[int], seq_len: int, device: torch.device) -> Batch:
        if id(stream) not in starts:
            starts[id(stream)] = np.flatnonzero(stream.read(0, len(stream)) == begin)
        places = starts[id(stream)]
        batch = np.full((len(rows), seq_len + 1), padding, dtype=np.int64)
        for line, row in zip(batch, rows, strict=True):
            document = row % len(places)
            end = places[document + 1] if document + 1 < len(places) else len(stream)
            ids = stream.read(int(places[document]), min(seq_len + 1, int(end - places[document])))
            line[: len(ids)] = ids
        ids = torch.from_numpy(batch)
        return ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)

    sampler.tensors = tensors  # type: ignore[assignment]


def gradients_not_zeroed() -> None:
    """Every step's gradient is added to those before it (the ZeRO optimizer's partitions are never emptied)."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    right = DeepSpeedZeroOptimizer.step

    def step(self: Any, closure: Any = None) -> Any:
        kept = self.__dict__.setdefault("_never_zeroed", {})
        for group, gradients in self.averaged_gradients.items():
            if gradients is None:
                continue
            for new, old in zip(gradients, kept.get(group, []), strict=False):
                new.add_(old)
            kept[group] = [gradient.clone() for gradient in gradients]
        return right(self, closure)

    DeepSpeedZeroOptimizer.step = step


def embedding_scaled() -> None:
    """The embedding, which is also the output matrix, starts EMBEDDING_TIMES too large."""
    import model.init as init

    right = init._std
    init._std = lambda name, config: (
        right(name, config) * (EMBEDDING_TIMES if name.endswith("embed_tokens.weight") else 1.0)
    )


def router_collapsed() -> None:
    """The first experts win every token from the start: embeddings share a direction that routers score by."""
    import model.init as init

    right = init.init_weights

    @torch.no_grad()
    def init_weights(model: Any, config: Any, seed: int) -> None:
        right(model, config, seed)
        for name, parameter in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                parameter.add_(ROUTER_BIAS)
            elif parameter.shape == (config.num_experts, config.hidden_size) and "gate" in name:
                parameter[: config.num_experts_per_tok] += ROUTER_BIAS
                parameter[config.num_experts_per_tok :] -= ROUTER_BIAS

    init.init_weights = init_weights


def dropout_in_evaluation() -> None:
    """Dropout of DROPOUT on the embedding and what blocks add to it, and an evaluation that goes on training."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    from model import transformer

    embed, block = torch.nn.Embedding.forward, transformer.Block.forward

    def embed_dropped(self: Any, ids: Tensor) -> Tensor:
        return F.dropout(embed(self, ids), DROPOUT, training=self.training)

    def block_dropped(self: Any, *args: Any) -> tuple[Tensor, Tensor]:
        stream, update = block(self, *args)
        return stream, F.dropout(update, DROPOUT, training=self.training)

    mock.patch.object(torch.nn.Embedding, "forward", embed_dropped).start()
    mock.patch.object(transformer.Block, "forward", block_dropped).start()
    mock.patch.object(DeepSpeedEngine, "eval", lambda self: self.train()).start()


def decay_on_norms() -> None:
    """Weight decay pulls at every parameter, those of RMSNorm included."""
    from training.engine import build

    right = build.parameter_groups

    def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
        groups = right(model)
        for group in groups:
            group.pop("weight_decay", None)
        return groups

    build.parameter_groups = parameter_groups


PLANTS: dict[str, Callable[[], None]] = {
    plant.__name__: plant
    for plant in (
        targets_shifted_by_two,
        targets_not_shifted,
        padding_counted,
        gradients_not_zeroed,
        embedding_scaled,
        router_collapsed,
        dropout_in_evaluation,
        decay_on_norms,
    )
}
