"""Feed-forward layers: SwiGLU, and the two forms of the expert layer.

`DeepSpeedMoE` trains: DeepSpeed dispatches tokens, splits experts over ranks and reduces their gradients.
`LocalMoE` generates: one process, no padding to the busiest expert, only the chosen experts run. Both compute the
same function of the same weights (tests/model/test_moe.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), Shazeer 2020; the dense layer and each single expert."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (..., H) -> (..., H)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DenseMLP(SwiGLU):
    """The feed-forward layer of a model without experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.intermediate_size)


class LocalMoE(nn.Module):
    """Top-k experts on one process, drop-free, for generation and evaluation of a saved model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            SwiGLU(config.hidden_size, config.moe_intermediate_size) for _ in range(config.num_experts))

    def forward(self, x_BTH: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H); a token's output does not depend on its neighbours."""
        x_SH = x_BTH.reshape(-1, x_BTH.shape[-1])
        # the router stays in fp32 whatever the weights are, as in DeepSpeed's gate
        probs_SE = F.linear(x_SH.float(), self.gate.weight.float()).softmax(-1)
        weight_SK, expert_SK = probs_SE.topk(self.top_k, dim=-1)
        if self.top_k > 1:
            weight_SK = weight_SK / weight_SK.sum(-1, keepdim=True)
        if len(x_SH) == 1:  # decoding: no sorting of tokens by expert
            y_KH = torch.stack([self.experts[expert](x_SH)[0].float() for expert in expert_SK[0].tolist()])
            return (weight_SK @ y_KH).to(x_BTH.dtype).view_as(x_BTH)
        out_SH = torch.zeros_like(x_SH, dtype=torch.float32)
        for expert in expert_SK.unique().tolist():
            token, slot = torch.where(expert_SK == expert)
            y = self.experts[expert](x_SH[token])
            out_SH.index_add_(0, token, y.float() * weight_SK[token, slot, None])
        return out_SH.to(x_BTH.dtype).view_as(x_BTH)


ROOM_MULTIPLE = 64


class DeepSpeedMoE(nn.Module):
    """`deepspeed.moe.layer.MoE` with the settings under which a token's output is its own affair.

    Second-expert sampling is off (its Gumbel noise would stay on in evaluation), the minimum capacity is 0, and
    evaluation never drops a token, so a validation loss does not depend on what shares the batch. After a forward
    pass `balance_loss` holds DeepSpeed's l_aux (1.0 is perfect balance) and `route_counts` (E + 1,) has grown, while
    training, by the dropped routes [0] and the routes of each expert [1:]. `entropy_sum` has grown by the entropy of
    the router's probabilities, in nats, summed over the tokens (None before the first pass of training).
    """

    balance_loss: Tensor
    route_counts: Tensor
    entropy_sum: Tensor | None  # no buffer: `module.half()` would round it

    def __init__(self, config: ModelConfig, ep_rank: int = 0) -> None:
        super().__init__()
        from deepspeed.moe.layer import MoE  # only training needs DeepSpeed

        self.first_expert = ep_rank * (config.num_experts // config.ep_size)
        self.moe = MoE(
            hidden_size=config.hidden_size,
            expert=SwiGLU(config.hidden_size, config.moe_intermediate_size),
            num_experts=config.num_experts,
            ep_size=config.ep_size,
            k=config.num_experts_per_tok,
            drop_tokens=config.capacity_factor > 0,
            capacity_factor=config.capacity_factor or 1.0,
            # room for every token in every expert
            eval_capacity_factor=config.num_experts / config.num_experts_per_tok,
            min_capacity=0,
            use_rts=config.capacity_factor > 0,
            top2_2nd_expert_sampling=False,
        )
        self.register_buffer("route_counts", torch.zeros(config.num_experts + 1, dtype=torch.long), persistent=False)
        self.top_k = config.num_experts_per_tok
        self.entropy_sum = None
        self.drop_free = config.capacity_factor == 0
        self.moe.deepspeed_moe.gate.register_forward_hook(self._after_gate)

    def _after_gate(self, gate: nn.Module, args: tuple, output: tuple) -> tuple:
        """Count the routes, and round the room of an expert up to a few sizes.

        Drop-free room is that of the busiest expert, another number at every step; the CPU's matrix library compiles
        and keeps a kernel for each size it meets (45 MB a step, measured), and a GPU's allocator fragments.
        """
        balance_loss, capacity, num_experts, expert_KS, *rest = output
        if self.training:
            slot = (expert_KS.detach() + 1).flatten().long()  # -1 where the capacity limit evicted the route
            self.route_counts.scatter_add_(0, slot, torch.ones_like(slot))
            entropy = _entropy_sum(args[0].detach(), gate.wg.weight.detach())
            self.entropy_sum = entropy if self.entropy_sum is None else self.entropy_sum + entropy
        if self.drop_free:
            capacity = (int(capacity) + ROOM_MULTIPLE - 1) // ROOM_MULTIPLE * ROOM_MULTIPLE
        return (balance_loss, capacity, num_experts, expert_KS, *rest)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        y_BTH, self.balance_loss, _ = self.moe(x_BTH)
        return y_BTH


def _entropy_sum(x_SH: Tensor, router_EH: Tensor) -> Tensor:
    """Entropy of the router's choice in nats, summed over the tokens; DeepSpeed keeps its probabilities to itself."""
    log_SE = F.linear(x_SH.float(), router_EH.float()).log_softmax(-1)
    return -(log_SE.exp() * log_SE).sum()
