"""One new token a row through the network, with as few and as fast operations as there are: the maths of
`CausalLM.logits`, whose general form spends more time on calls than on arithmetic when a pass has one token. A single
text on a CPU without padding has a faster way still (`model/inference/decode_numpy.py`).

Everything here is a view of the model's own weights or a table made from the configuration, so a `Decoding` is made
in a millisecond and can be thrown away after each text.

Shapes in names: B batch, S tokens attended to, H hidden, N query heads, K key/value heads, R query heads that share a
key head, D head width, W width of an expert, E experts, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from model.inference.gemv import few_rows_linear
from model.inference.kv_cache import KVCache
from model.layers import SwiGLU, rotary
from model.moe import LocalMoE, route_one

if TYPE_CHECKING:
    from model.transformer import Block, CausalLM


class Decoding:
    """The steps of one call of `generate` after its prompt; `cache` holds the prompt."""

    def __init__(self, model: CausalLM, cache: KVCache) -> None:
        config, weight = model.config, model.model.embed_tokens.weight
        positions = torch.arange(cache.capacity, device=weight.device)[None]
        cos, sin = rotary(positions, config.head_size, config.rope_theta, weight.dtype)
        self.cos_SD = cos.reshape(cache.capacity, -1)
        self.sin_SD = sin.reshape(cache.capacity, -1)
        self.cache = cache
        self.embedding = weight
        self.eps = config.rms_norm_eps
        self.final_norm = model.model.norm.weight
        self.layers = [_Layer(block, cache, index) for index, block in enumerate(model.model.layers)]

    @staticmethod
    def fits(model: CausalLM) -> bool:
        """Whether the model can be decoded so: fp32, and no layer in its training form."""
        return model.model.embed_tokens.weight.dtype == torch.float32 and all(
            isinstance(block.mlp, LocalMoE | SwiGLU) for block in model.model.layers
        )

    def step(self, token_B: Tensor, position_B: Tensor | None, visible_BS: Tensor | None) -> Tensor:
        """(B,) tokens -> (B, V) logits of the next; both others None means that no row is padded.

        `position_B` are the tokens' positions, `visible_BS` is false where a row has padding, S tokens with this one.
        """
        past = self.cache.length
        self.cache.check_room(past + 1)
        if position_B is None:
            rope = self.cos_SD[past], self.sin_SD[past]
        else:
            rope = self.cos_SD[position_B][:, None], self.sin_SD[position_B][:, None]
        mask = None if visible_BS is None else visible_BS[:, None, None]
        x_BH = self.embedding.index_select(0, token_B)
        for layer in self.layers:
            x_BH = layer.feed_forward(layer.attend(x_BH, rope, mask, past))
        self.cache.advance(1)
        return few_rows_linear(rms_norm(x_BH, self.final_norm, self.eps), self.embedding)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`network.RMSNorm` of fp32, in place of what it makes on the way."""
    return (x * x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()).mul_(weight)


class _Layer:
    """One block's weights, in the form in which a step needs them."""

    def __init__(self, block: Block, cache: KVCache, index: int) -> None:
        attention = block.self_attn
        self.eps = block.input_layernorm.eps
        self.norm, self.mlp_norm = block.input_layernorm.weight, block.post_attention_layernorm.weight
        self.qkv = [projection.weight for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.num_heads, self.num_kv_heads = attention.num_heads, attention.num_kv_heads
        self.head = attention.q_norm.weight.shape[0]
        self.head_norm = torch.cat(
            [attention.q_norm.weight.expand(self.num_heads, -1), attention.k_norm.weight.expand(self.num_kv_heads, -1)]
        )
        self.output = attention.o_proj.weight
        self.both, self.keys, self.values = cache.both[index], cache.keys[index], cache.values[index]
        self.mlp = block.mlp
        experts = block.mlp.experts if isinstance(block.mlp, LocalMoE) else [block.mlp]
        self.experts = [_Expert(expert) for expert in experts]

    def attend(self, x_BH: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, past: int) -> Tensor:
        """(B, H) -> (B, H), the residual included; stores keys and values at `past`."""
        batch = len(x_BH)
        heads = products(rms_norm(x_BH, self.norm, self.eps), self.qkv)
        qkv_BND = torch.cat(heads, dim=-1).view(batch, -1, self.head)
        qk_BND = qkv_BND[:, : self.num_heads + self.num_kv_heads]
        qk_BND = rms_norm(qk_BND, self.head_norm, self.eps)
        cos, sin = rope
        qk_BND = torch.addcmul(qk_BND * cos, torch.roll(qk_BND, self.head // 2, -1), sin)
        self.keys[:, :, past] = qk_BND[:, self.num_heads :]
        self.values[:, :, past] = qkv_BND[:, self.num_heads + self.num_kv_heads :]
        keys_BKSD, values_BKSD = self.both[:, :, :, : past + 1].unbind(0)
        q_BKRD = qk_BND[:, : self.num_heads].view(batch, self.num_kv_heads, -1, self.head)
        y_BKRD = F.scaled_dot_product_attention(q_BKRD, keys_BKSD, values_BKSD, attn_mask=mask)
        return x_BH + few_rows_linear(y_BKRD.reshape(batch, -1), self.output)

    def feed_forward(self, x_BH: Tensor) -> Tensor:
        """(B, H) -> (B, H), the residual included."""
        normed_BH = rms_norm(x_BH, self.mlp_norm, self.eps)
        if not isinstance(self.mlp, LocalMoE):
            return self.experts[0].add(x_BH, normed_BH, 1.0)
        if len(x_BH) > 1:
            return x_BH + self.mlp(normed_BH)
        for expert, weight in route_one(F.linear(normed_BH, self.mlp.gate.weight)[0].tolist(), self.mlp.top_k):
            x_BH = self.experts[expert].add(x_BH, normed_BH, weight)
        return x_BH


class _Expert:
    """A SwiGLU whose output is added to the residual stream."""

    def __init__(self, expert: SwiGLU) -> None:
        self.first = [expert.gate_proj.weight, expert.up_proj.weight]
        self.down = expert.down_proj.weight

    def add(self, x_BH: Tensor, normed_BH: Tensor, weight: float) -> Tensor:
        """x + weight * expert(normed), (B, H)."""
        gate_BW, up_BW = products(normed_BH, self.first)
        # baddbmm would do both at once, but not by the fast product
        return x_BH.add(few_rows_linear(F.silu(gate_BW, inplace=True).mul_(up_BW), self.down), alpha=weight)


def products(x_BI: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """`few_rows_linear` of the same rows with each of the weights."""
    return [few_rows_linear(x_BI, weight) for weight in weights]
