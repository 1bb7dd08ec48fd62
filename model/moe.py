"""The two forms of the expert layer.

`DeepSpeedMoE` trains: DeepSpeed dispatches tokens, splits experts over ranks and reduces their gradients.
`LocalMoE` generates: one process, no padding to the busiest expert, only the chosen experts run. Both compute the
same function of the same weights (tests/unit/model/test_moe.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.kernels import Kernels
from model.layers import SwiGLU


class LocalMoE(nn.Module):
    """Top-k experts on one process, drop-free, for generation and evaluation of a saved model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            SwiGLU(config.hidden_size, config.moe_intermediate_size) for _ in range(config.num_experts)
        )

    def forward(self, x_BTH: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H); a token's output does not depend on its neighbours."""
        x_SH = x_BTH.reshape(-1, x_BTH.shape[-1])
        # the router stays in fp32 whatever the weights are, as in DeepSpeed's gate
        probs_SE = F.linear(x_SH.float(), self.gate.weight.float()).softmax(-1)
        weight_SK, expert_SK = probs_SE.topk(self.top_k, dim=-1)
        if self.top_k > 1:
            weight_SK = weight_SK / weight_SK.sum(-1, keepdim=True)
        out_SH = torch.zeros_like(x_SH, dtype=torch.float32)
        for expert, token, slot in _by_expert(expert_SK):
            y = self.experts[expert](x_SH[token])
            out_SH.index_add_(0, token, y.float() * weight_SK[token, slot, None])
        return out_SH.to(x_BTH.dtype).view_as(x_BTH)


def _by_expert(expert_SK: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (expert, tokens, which choice of each token) for each expert that was chosen; one wait for a GPU."""
    tokens: dict[int, list[int]] = {}
    for route, expert in enumerate(expert_SK.flatten().tolist()):
        tokens.setdefault(expert, []).append(route)
    for expert, routes in sorted(tokens.items()):
        route = torch.tensor(routes, device=expert_SK.device)
        yield expert, route // expert_SK.shape[1], route % expert_SK.shape[1]


GROUP_MULTIPLE = 64
"""An expert's group of tokens is padded to a multiple of this. The number of its tokens is another at every step, and
the CPU's matrix library compiles and keeps a kernel for each size it meets (45 MB a step, measured); a GPU's allocator
fragments."""


class DeepSpeedMoE(nn.Module):
    """`deepspeed.moe.layer.MoE`: it makes the experts, splits them over ranks and has their gradients reduced.

    Where every rank holds all experts and none drops a token, the tokens go to them from here, each expert in as many
    rows as it has tokens (rounded up to 64): DeepSpeed's own dispatch gives every expert the rows of the busiest. With
    `ep_size` above 1, or a capacity, it is DeepSpeed's, with the settings under which a token's output is its own
    affair: second-expert sampling is off (its Gumbel noise would stay on in evaluation), the minimum capacity is 0, and
    evaluation never drops a token, so a validation loss does not depend on what shares the batch.

    After a forward pass `take_balance_loss` returns DeepSpeed's l_aux (1.0 is perfect balance) and `route_counts`
    (E + 1,) has grown, while training, by the dropped routes [0] and the routes of each expert [1:]. `entropy_sum` has
    grown by the entropy of the router's probabilities, in nats, summed over the tokens (None before the first pass of
    training).
    """

    balance_loss: Tensor  # of the last pass; detached once it is taken
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
            # an expert can take every token
            eval_capacity_factor=config.num_experts / config.num_experts_per_tok,
            min_capacity=0,
            use_rts=config.capacity_factor > 0,
            top2_2nd_expert_sampling=False,
        )
        self.register_buffer("route_counts", torch.zeros(config.num_experts + 1, dtype=torch.long), persistent=False)
        self.top_k = config.num_experts_per_tok
        self.entropy_sum = None
        self.drop_free = config.capacity_factor == 0
        self.together = config.ep_size == 1
        self.kernels = Kernels()
        layer: Any = self.moe.deepspeed_moe
        layer.gate.register_forward_hook(self._after_gate)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        if self.together and self.drop_free:
            return self._own_dispatch(x_BTH.flatten(0, -2)).view_as(x_BTH)
        y_BTH, self.balance_loss, _ = self.moe(x_BTH)
        layer: Any = self.moe.deepspeed_moe
        layer.l_aux = self.balance_loss.detach()  # DeepSpeed's own reference would keep the graph of the whole pass
        return y_BTH

    def take_balance_loss(self) -> Tensor:
        """Return the balancing loss of the last pass, and keep only its value.

        It hangs on everything that the pass computed before this layer: a reference kept here would hold a whole
        pass's activations in memory until the next one has filled as much again.
        """
        taken, self.balance_loss = self.balance_loss, self.balance_loss.detach()
        return taken

    def _own_dispatch(self, x_SH: Tensor) -> Tensor:
        layer: Any = self.moe.deepspeed_moe
        probs_SE = self.kernels.router_logits(x_SH, layer.gate.wg.weight).softmax(-1)
        weight_SK, expert_SK = probs_SE.topk(self.top_k, dim=-1)
        counted = F.one_hot(expert_SK if self.top_k > 2 else expert_SK[:, :1], probs_SE.shape[1]).float().mean((0, 1))
        self.balance_loss = (probs_SE.mean(0) * counted).sum() * probs_SE.shape[1]
        if self.top_k > 1:
            weight_SK = weight_SK / weight_SK.sum(-1, keepdim=True)
        y_SH, count_E = run_experts(x_SH, weight_SK, expert_SK, layer.experts.deepspeed_experts, self.kernels)
        if self.training:
            self.route_counts[1:] += count_E
            self._add_entropy(probs_SE.detach())
        return y_SH

    def _after_gate(self, gate: Any, args: tuple, output: tuple) -> tuple:
        """Count the routes, and round the expert capacity up to a few sizes."""
        balance_loss, capacity, num_experts, expert_KS, *rest = output
        if self.training:  # an expert of -1 is a route that the capacity limit evicted
            slot = (expert_KS + 1).flatten().long()
            self.route_counts.scatter_add_(0, slot, torch.ones_like(slot))
            self._add_entropy(F.linear(args[0].detach().float(), gate.wg.weight.detach().float()).softmax(-1))
        if self.drop_free:
            capacity = _padded(int(capacity))
        return (balance_loss, capacity, num_experts, expert_KS, *rest)

    def _add_entropy(self, probs_SE: Tensor) -> None:
        entropy = torch.special.entr(probs_SE).sum()
        self.entropy_sum = entropy if self.entropy_sum is None else self.entropy_sum + entropy


def run_experts(
    x_SH: Tensor, weight_SK: Tensor, expert_SK: Tensor, experts: Sequence[SwiGLU], kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Return the outputs of the experts, weighed and summed in fp32 (S, H), and the routes of each."""
    source_P, row_SK, sizes, count_E = route(expert_SK, len(experts))
    x_PH = kernels.dispatch(x_SH, source_P, row_SK)
    y_PH = kernels.feed_forward(x_PH, sizes, experts)
    return kernels.combine(y_PH, weight_SK, row_SK, source_P), count_E


def route(expert_SK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Return which token each row holds (P,), in which rows each token is (S, K), each expert's rows, and its routes.

    The tokens are sorted by expert, so that each expert's are one slice; the slice is padded to a multiple of
    GROUP_MULTIPLE with rows that nobody reads. The host waits for the device once, to learn how many rows each expert
    has.
    """
    routes, top_k, device = expert_SK.numel(), expert_SK.shape[1], expert_SK.device
    narrow = torch.uint8 if num_experts < 256 else torch.int32  # a GPU sorts a byte at a time
    sorted_expert_R, sorted_R = expert_SK.flatten().to(narrow).sort(stable=True)  # the routes of expert 0 first
    first_F = torch.searchsorted(sorted_expert_R, torch.arange(num_experts + 1, device=device, dtype=narrow))
    count_E = first_F.diff()
    size_E = _padded(count_E)
    before_E = size_E.cumsum(0) - size_E - first_F[:-1]
    row_R = torch.arange(routes, device=device) + before_E[sorted_expert_R.long()]
    group_sizes = _on_host(size_E, routes)
    source_P = torch.zeros(sum(group_sizes), dtype=torch.long, device=device).scatter_(0, row_R, sorted_R // top_k)
    row_SK = torch.empty_like(row_R).scatter_(0, sorted_R, row_R).view_as(expert_SK)
    return source_P, row_SK, group_sizes, count_E


def _on_host(size_E: Tensor, routes: int) -> list[int]:
    """Return the padded group sizes as numbers; on the meta device, where nobody knows them, as if they were even."""
    return [_padded(routes // len(size_E))] * len(size_E) if size_E.is_meta else size_E.tolist()


def _padded(tokens: Any) -> Any:
    """Return a number of tokens, or a tensor of them, rounded up to the next GROUP_MULTIPLE."""
    return (tokens + GROUP_MULTIPLE - 1) // GROUP_MULTIPLE * GROUP_MULTIPLE
