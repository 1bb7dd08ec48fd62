"""Grouped-query attention, over packed rows in training and over a key/value cache in generation.

Shapes in names: B batch, T tokens of this call, S tokens attended to (cache included), H hidden, N query heads,
K key/value heads, R query heads that share a key/value head, D head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.inference.kv_cache import KVCache
from model.kernels import Kernels
from model.layers import RMSNorm
from model.packed_attention import PackedRows


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
        self.kernels = Kernels()

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
        projected = self.kernels.project(x_BTH, (self.q_proj, self.k_proj, self.v_proj))
        q_BTND, k_BTKD, v_BTKD = (t.view(heads) for t in projected)
        q_BNTD = self.kernels.norm_rotate(q_BTND, self.q_norm.weight, self.q_norm.eps, *rope)
        k_BKSD = self.kernels.norm_rotate(k_BTKD, self.k_norm.weight, self.k_norm.eps, *rope)
        v_BKSD = v_BTKD.transpose(1, 2)
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
