"""The network: Qwen3's published structure (dense or mixture of experts), with parameter names as in Hugging Face.

Shapes in names: B batch, T tokens of this call, S tokens attended to (cache included), H hidden, N query heads,
K key/value heads, D head width, V vocabulary, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.inference.generate import generate
from model.inference.kv_cache import KVCache
from model.loss import linear_cross_entropy
from model.moe import DeepSpeedMoE, DenseMLP, LocalMoE
from model.packed import PackedRows

ExpertLayer = Callable[[ModelConfig], nn.Module]


class _RMSNorm(torch.autograd.Function):
    """Keeps its input and one number a row; autograd keeps two fp32 copies and passes over memory more often."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Like x."""
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (x32 * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of x and of the weight."""
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        grad_weight_rows = (normed * grad).flatten(0, -2)
        along = (grad_weight_rows @ weight.float()).div_(x.shape[-1]).view_as(scale)
        grad_x = normed.mul_(-along).addcmul_(grad.float(), weight.float()).mul_(scale)
        return grad_x.to(x.dtype), grad_weight_rows.sum(0).to(weight.dtype), None


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019; the mean square is taken in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width), in the dtype of x."""
        return _RMSNorm.apply(x, self.weight, self.eps)


def rotary(position_BT: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of shape (B, 1, T, width) for RoPE (Su et al. 2021), halves rotated as in Hugging Face.

    The left half of the sines is negative: x cos + (right, left) sin is the rotation.

    Computed anew in fp32 rather than kept in a buffer, which `module.half()` would round to 11 bits.
    """
    exponent = torch.arange(0, width, 2, device=position_BT.device, dtype=torch.float32) / width
    angle = position_BT[:, None, :, None].float() * theta**-exponent
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class _Rotate(torch.autograd.Function):
    """The backward pass of a rotation is the rotation back: three passes over memory, where autograd takes nine."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Like x."""
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Of x."""
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((right, left), dim=-1), sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply `rotary` angles to (B, heads, T, D)."""
    return _Rotate.apply(x, cos, sin)


class Attention(nn.Module):
    """Grouped-query attention with RMS-normalised queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        width, head = config.hidden_size, config.head_size
        self.q_proj = nn.Linear(width, self.num_heads * head, bias=False)
        self.k_proj = nn.Linear(width, self.num_kv_heads * head, bias=False)
        self.v_proj = nn.Linear(width, self.num_kv_heads * head, bias=False)
        self.o_proj = nn.Linear(self.num_heads * head, width, bias=False)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)

    def forward(
        self,
        x_BTH: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | PackedRows | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        """`mask` is (B or 1, 1, T, S) bool, or packed rows; None means plain causal attention over T = S."""
        batch, length, _ = x_BTH.shape
        heads = (batch, length, -1, self.q_norm.weight.shape[0])
        q_BNTD = rotate(self.q_norm(self.q_proj(x_BTH).view(heads)).transpose(1, 2), *rope)
        k_BKSD = rotate(self.k_norm(self.k_proj(x_BTH).view(heads)).transpose(1, 2), *rope)
        v_BKSD = self.v_proj(x_BTH).view(heads).transpose(1, 2)
        if isinstance(mask, PackedRows):
            y_BNTD = mask.attend(q_BNTD, k_BKSD, v_BKSD)
            return self.o_proj(y_BNTD.transpose(1, 2).reshape(batch, length, -1))
        if cache is not None:
            k_BKSD, v_BKSD = cache.append(layer, k_BKSD, v_BKSD)
        if length == 1:
            # one new token: the heads that share keys become the query's positions, and no key is copied
            y_BKRD = F.scaled_dot_product_attention(
                q_BNTD.reshape(batch, self.num_kv_heads, -1, heads[-1]), k_BKSD, v_BKSD, attn_mask=mask
            )
            return self.o_proj(y_BKRD.reshape(batch, length, -1))
        # SDPA's own grouped-query switch leaves the memory-efficient kernel, the best one a T4 has
        repeats = self.num_heads // self.num_kv_heads
        k_BNSD, v_BNSD = (t.repeat_interleave(repeats, dim=1) for t in (k_BKSD, v_BKSD))
        y_BNTD = F.scaled_dot_product_attention(q_BNTD, k_BNSD, v_BNSD, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y_BNTD.transpose(1, 2).reshape(batch, length, -1))


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
        rope: tuple[Tensor, Tensor],
        mask: Tensor | PackedRows | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        x_BTH = x_BTH + self.self_attn(self.input_layernorm(x_BTH), rope, mask, cache, layer)
        return x_BTH + self.mlp(self.post_attention_layernorm(x_BTH))


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
        x_BTH = self.embed_tokens(ids_BT)
        rope = rotary(position_BT, self.config.head_size, self.config.rope_theta, x_BTH.dtype)
        for index, block in enumerate(self.layers):
            x_BTH = block(x_BTH, rope, mask, cache, index)
        if cache is not None:
            cache.advance(ids_BT.shape[1])
        return self.norm(x_BTH)


@dataclass(frozen=True)
class Losses:
    """`total` is what is differentiated: `lm` plus the coefficient times `balance`. Nats a token."""

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

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Losses:
        """Mean cross-entropy of packed rows; `targets_BT` are the inputs shifted by one, none of them padding."""
        hidden = self._packed_hidden(ids_BT).flatten(0, 1)
        lm = linear_cross_entropy(hidden, self.model.embed_tokens.weight, targets_BT.flatten())
        balance = self._balance_loss()
        total = lm if balance is None else lm + self.config.router_aux_loss_coef * balance
        return Losses(total, lm, balance)

    def loss_sum(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Summed cross-entropy of packed rows, targets of -100 left out: for evaluation."""
        logits = self.packed_logits(ids_BT).float().flatten(0, 1)
        return F.cross_entropy(logits, targets_BT.flatten(), reduction="sum")

    def packed_logits(self, ids_BT: Tensor) -> Tensor:
        """(B, T) packed rows -> (B, T, V) logits of the next token, as training and evaluation see them."""
        return self._head(self._packed_hidden(ids_BT))

    def _packed_hidden(self, ids_BT: Tensor) -> Tensor:
        mask = PackedRows.of(
            ids_BT, self.config.bos_token_id, self.config.eos_token_id, mask_documents=self.config.mask_documents
        )
        position = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        return self.model(ids_BT, mask, position, None)

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
        losses = [layer.balance_loss for layer in self.expert_layers()]
        return torch.stack(losses).mean() if losses else None

    def expert_layers(self) -> list[DeepSpeedMoE]:
        """The training form of the expert layers, first block first; empty for dense and for LocalMoE."""
        return [block.mlp for block in self.model.layers if isinstance(block.mlp, DeepSpeedMoE)]


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """(total, active a token): the tied embedding counts once, and wholly, in both."""
    with torch.device("meta"):
        model = CausalLM(config.for_inference())
    total = sum(p.numel() for p in model.parameters())
    idle = config.num_experts - config.num_experts_per_tok if config.use_moe else 0
    one_expert = 3 * config.hidden_size * config.moe_intermediate_size
    return total, total - config.num_hidden_layers * idle * one_expert
