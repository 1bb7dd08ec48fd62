"""The network: Qwen3's published structure (dense or mixture of experts), with parameter names as in Hugging Face.

Shapes in names: B batch, T tokens of this call, S tokens attended to (cache included), H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.uncompiled import on_meta_device
from model.attention import Attention
from model.config import ModelConfig
from model.inference.generate import generate
from model.inference.kv_cache import KVCache
from model.kernels import Kernels
from model.layers import DenseMLP, RMSNorm, rotary
from model.loss import cross_entropy_sum, linear_cross_entropy
from model.moe import DeepSpeedMoE, LocalMoE
from model.packed_attention import PackedRows

ExpertLayer = Callable[[ModelConfig], nn.Module]


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, expert_layer: ExpertLayer) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = expert_layer(config) if config.use_moe else DenseMLP(config)

    def forward(
        self,
        x_BTH: Tensor,
        update_BTH: Tensor | None,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | PackedRows | None,
        cache: KVCache | None,
        layer: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the residual stream (B, T, H) and what the next norm is to add to it first."""
        x_BTH, normed_BTH = self.input_layernorm(x_BTH, update_BTH)
        x_BTH, normed_BTH = self.post_attention_layernorm(x_BTH, self.self_attn(normed_BTH, rope, mask, cache, layer))
        return x_BTH, self.mlp(normed_BTH)


class Decoder(nn.Module):
    """Embedding, blocks, final norm: ids to hidden states."""

    def __init__(self, config: ModelConfig, expert_layer: ExpertLayer) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, expert_layer) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, ids_BT: Tensor, mask: Tensor | PackedRows | None, position_BT: Tensor, cache: KVCache | None
    ) -> Tensor:
        """(B, T) ids -> (B, T, H) hidden states after the final norm."""
        x_BTH, update_BTH = self.embed_tokens(ids_BT), None
        rope = rotary(position_BT, self.config.head_size, self.config.rope_theta, x_BTH.dtype)
        for index, block in enumerate(self.layers):
            x_BTH, update_BTH = block(x_BTH, update_BTH, rope, mask, cache, index)
        if cache is not None:
            cache.advance(ids_BT.shape[1])
        return self.norm(x_BTH, update_BTH)[1]


class Losses(NamedTuple):
    """`total` is what is differentiated: `lm` plus the coefficient times `balance`. Nats a token.

    A tuple, because DeepSpeed looks for the output's tensors to hook its backward timers to.
    """

    total: Tensor
    lm: Tensor
    balance: Tensor | None


class CausalLM(nn.Module):
    """The language model: a Decoder whose embedding is also its output matrix.

    `expert_layer` builds the feed-forward layer of a mixture-of-experts block: LocalMoE (the default) to evaluate
    and generate, DeepSpeedMoE to train.
    """

    def __init__(self, config: ModelConfig, expert_layer: ExpertLayer = LocalMoE) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.model = Decoder(config, expert_layer)
        self.kernels = Kernels()

    def use_kernels(self, kernels: Kernels) -> None:
        """Compute with these forms of the operations from now on."""
        for module in self.modules():
            if hasattr(module, "kernels"):
                setattr(module, "kernels", kernels)  # noqa: B010 (no attribute that torch knows of)

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor, divisor: float | None = None, counted: int | None = None
    ) -> Losses:
        """Cross-entropy of packed rows: the mean over `targets_BT`, the inputs shifted by one.

        The ids may still be in the host's memory, where documents are counted without waiting for a GPU.
        With a `divisor`, the sum over the `counted` targets that are not IGNORED, divided by it.
        """
        hidden = self._packed_hidden(ids_BT).flatten(0, 1)
        weight, error_of = self.model.embed_tokens.weight, self.kernels.softmax_error
        lm = linear_cross_entropy(hidden, weight, targets_BT.flatten(), divisor, counted, error_of)
        balance = self._balance_loss()
        total = lm if balance is None else lm + self.config.router_aux_loss_coef * balance
        return Losses(total, lm, balance)

    def loss_sum(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Summed cross-entropy of packed rows, targets of -100 left out: for evaluation."""
        hidden = self._packed_hidden(ids_BT).flatten(0, 1)
        return cross_entropy_sum(hidden, self.model.embed_tokens.weight, targets_BT.flatten())

    def packed_logits(self, ids_BT: Tensor) -> Tensor:
        """(B, T) packed rows -> (B, T, V) logits of the next token, as training and evaluation see them."""
        return self._head(self._packed_hidden(ids_BT))

    def _packed_hidden(self, ids_BT: Tensor) -> Tensor:
        config, weight = self.config, self.model.embed_tokens.weight
        packing = {"mask_documents": config.mask_documents, "dtype": weight.dtype, "device": weight.device}
        mask = self.kernels.packed_rows(ids_BT, config.bos_token_id, config.eos_token_id, **packing)
        position = torch.arange(ids_BT.shape[1], device=weight.device)[None]
        return self.model(ids_BT.to(weight.device, non_blocking=True), mask, position, None)

    def logits(
        self,
        ids_BT: Tensor,
        *,
        mask: Tensor | None = None,
        position_BT: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """(B, T) ids -> (B, T, V) logits of the next token, or (B, 1, V) with `last_only`.

        `mask` is (B or 1, 1, T, S) bool; without one, attention is causal over T (and over what the cache holds).
        """
        past = cache.length if cache is not None else 0
        if position_BT is None:
            position_BT = torch.arange(past, past + ids_BT.shape[1], device=ids_BT.device)[None]
        if mask is None and past and ids_BT.shape[1] > 1:
            mask = torch.ones(ids_BT.shape[1], past + ids_BT.shape[1], dtype=torch.bool, device=ids_BT.device)
            mask = mask.tril(past)[None, None]
        hidden = self.model(ids_BT, mask, position_BT, cache)
        return self._head(hidden[:, -1:] if last_only else hidden)

    generate = generate  # model.generate(input_ids, max_new_tokens=50, ...)

    def _head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight)

    def _balance_loss(self) -> Tensor | None:
        losses = [layer.take_balance_loss() for layer in self.expert_layers()]
        return torch.stack(losses).mean() if losses else None

    def expert_layers(self) -> list[DeepSpeedMoE]:
        """The training form of the expert layers, first block first; empty for dense and for LocalMoE."""
        return [block.mlp for block in self.model.layers if isinstance(block.mlp, DeepSpeedMoE)]


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """(total, active a token): the tied embedding counts once, and wholly, in both."""
    with on_meta_device():
        model = CausalLM(config.for_inference())
    total = sum(p.numel() for p in model.parameters())
    idle = config.num_experts - config.num_experts_per_tok if config.use_moe else 0
    one_expert = 3 * config.hidden_size * config.moe_intermediate_size
    return total, total - config.num_hidden_layers * idle * one_expert
