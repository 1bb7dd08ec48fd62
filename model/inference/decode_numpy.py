"""One token of one text through the network on a CPU, in NumPy: the maths of `CausalLM.logits`.

A call of NumPy costs a fifth of a call of PyTorch, and one row through a small model is nothing but calls: without this
module the aim of 3 times the speed of `transformers.generate` is missed (docs/dev/performance.md). Large matrices go
through PyTorch all the same, by the product that reads them fastest.

The arithmetic is fp32. Weights in fp32 are used where they are. Those of a model in 16 bits are copied to fp32 first,
which takes twice their memory while a text is written. It rounds no result to 8 or 11 bits, so the text is not that of
16-bit arithmetic; only the prompt's keys and values are rounded. PyTorch's products of one 16-bit row were slower, also
those with packed weights (a step of the default model: 6.6 ms, and 5.3 in this way). NumPy's products use the threads
of its own BLAS, which the environment sets (OMP_NUM_THREADS).

Shapes in names: S tokens attended to, C capacity of the cache, H hidden, N query heads, K key/value heads, R query
heads that share a key head, D head width, W width of an expert, V vocabulary; a matrix is (O, I). Between the head's
norm and attention a head is two halves of D/2, X = 2, which the rotation swaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from model.attention import Attention
from model.inference.kv_cache import KVCache
from model.layers import SwiGLU, rotary
from model.moe import LocalMoE

if TYPE_CHECKING:
    from model.transformer import Block, CausalLM

MOST_NUMPY_WEIGHTS = 2**16  # of a matrix; with a larger one PyTorch's product is the faster
MOST_COPIED_WEIGHTS = 2**28  # of a 16-bit model, whose copy takes 1 GiB


class NumpyDecoder:
    """The steps of one call of `generate` after its prompt; `cache` holds the prompt."""

    def __init__(self, model: CausalLM, cache: KVCache) -> None:
        config = model.config
        cos, sin = rotary(torch.arange(cache.capacity)[None], config.head_size, config.rope_theta, torch.float32)
        self.cos_CXD, self.sin_CXD = (angles.reshape(cache.capacity, 2, -1).numpy() for angles in (cos, sin))
        self.cache = cache
        self.eps = config.rms_norm_eps
        self.final_norm = array(model.model.norm.weight)
        self.output = Matrix(model.model.embed_tokens.weight)
        caches = cache.layers.float().numpy()  # the cache itself, if it is in fp32
        blocks = cast("list[Block]", list(model.model.layers))
        self.layers = [_Layer(block, layer) for block, layer in zip(blocks, caches, strict=True)]

    @staticmethod
    def supports(model: CausalLM, batch: int) -> bool:
        """Return whether it is one text on a CPU, without a large copy or a layer in its training form."""
        weight, layers = model.model.embed_tokens.weight, model.model.layers
        if batch > 1 or weight.device.type != "cpu" or not all(isinstance(b.mlp, LocalMoE | SwiGLU) for b in layers):
            return False
        return weight.dtype == torch.float32 or sum(p.numel() for p in model.parameters()) <= MOST_COPIED_WEIGHTS

    def steps(self, ids: Tensor, end: int) -> Iterator[Tensor]:
        """Yield the logits (1, V) after ids[:end], then after one more token each time, which the caller writes."""
        while True:
            yield self.step(int(ids[end]))
            end += 1

    def step(self, token: int) -> Tensor:
        """Return the fp32 logits (1, V) of the token after this one; the next step overwrites them."""
        past = self.cache.length
        self.cache.check_capacity(past + 1)
        x_H = self.output.weight[token]
        with np.errstate(all="ignore"):  # a model that has diverged is found by its logits
            for layer in self.layers:
                x_H = layer.attend(x_H, self.cos_CXD[past], self.sin_CXD[past], past)
                x_H = layer.feed_forward(x_H)
            logits_V = self.output(rms_norm(x_H, self.final_norm, self.eps))
        self.cache.advance(1)
        return torch.from_numpy(logits_V)[None]


class Matrix:
    """The product of a weight (O, I) with one vector, which is written to `out`, by default memory of its own.

    A large matrix goes through PyTorch's batched product, cut in halves: MKL's product with a vector uses one core and
    a quarter of its bandwidth on processors that are not Intel's (10 of 45 GB/s measured on an EPYC).
    """

    def __init__(self, weight: Tensor, out: np.ndarray | None = None) -> None:
        self.weight = array(weight)
        self.out = np.empty(len(weight), np.float32) if out is None else out
        self.parts = 0 if weight.numel() <= MOST_NUMPY_WEIGHTS else 2 - len(weight) % 2
        if self.parts:
            self.split = torch.from_numpy(self.weight).view(self.parts, -1, self.weight.shape[1])
            self.split_out = torch.from_numpy(self.out).view(self.parts, -1, 1)

    def __call__(self, x_I: np.ndarray) -> np.ndarray:
        """(I,) -> (O,), in the same memory each time."""
        if not self.parts:
            return np.dot(self.weight, x_I, out=self.out)
        # the strides tell MKL that the column is a transposed row
        column = torch.from_numpy(x_I).as_strided((self.parts, len(x_I), 1), (0, 1, len(x_I)))
        torch.bmm(self.split, column, out=self.split_out)
        return self.out


class Matrices:
    """The products of weights (O, I) with the same vector, one after the other in one memory.

    Weights in 16 bits, which are copied anyway, become one matrix: a product costs microseconds beside its reading.
    """

    def __init__(self, *weights: Tensor) -> None:
        if weights[0].dtype != torch.float32:
            weights = (torch.cat(weights),)
        ends = list(accumulate(map(len, weights)))
        self.out = np.empty(ends[-1], np.float32)
        outs = np.split(self.out, ends[:-1])
        self.parts = [Matrix(weight, out) for weight, out in zip(weights, outs, strict=True)]

    def __call__(self, x_I: np.ndarray) -> np.ndarray:
        """(I,) -> (sum of O,), in the same memory each time."""
        for part in self.parts:
            part(x_I)
        return self.out


class _Layer:
    """One block, in the form in which a step needs it."""

    def __init__(self, block: Block, cache: np.ndarray) -> None:
        attention = block.self_attn
        self.eps = block.input_layernorm.eps
        self.norm, self.mlp_norm = array(block.input_layernorm.weight), array(block.post_attention_layernorm.weight)
        self.num_heads = attention.num_heads
        self.head_norm = _head_norms(attention)
        self.keys_KCD, self.values_KCD = cache[:, 0]
        self.qkv = Matrices(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        self.output = Matrix(attention.o_proj.weight)
        moe = block.mlp if isinstance(block.mlp, LocalMoE) else None
        self.experts = [_Expert(cast(SwiGLU, expert)) for expert in (moe.experts if moe else [block.mlp])]
        self.router, self.top_k = (Matrix(moe.gate.weight), moe.top_k) if moe else (None, 1)

    def attend(self, x_H: np.ndarray, cos_XD: np.ndarray, sin_XD: np.ndarray, past: int) -> np.ndarray:
        """(H,) -> (H,), the residual included; stores keys and values at `past`."""
        kv_heads, _, head = self.keys_KCD.shape
        heads = self.qkv(rms_norm(x_H, self.norm, self.eps)).reshape(-1, 2, head // 2)
        qk = heads[:-kv_heads]
        scale = 1 / np.sqrt(np.einsum("nxd,nxd->n", qk, qk) / head + self.eps)
        qk = qk * self.head_norm * scale[:, None, None]
        qk = qk * cos_XD + qk[:, ::-1] * sin_XD
        self.keys_KCD[:, past] = qk[self.num_heads :].reshape(-1, head)
        self.values_KCD[:, past] = heads[-kv_heads:].reshape(-1, head)
        y_KRD = attended(
            qk[: self.num_heads].reshape(kv_heads, -1, head),
            self.keys_KCD[:, : past + 1],
            self.values_KCD[:, : past + 1],
        )
        return x_H + self.output(y_KRD.reshape(-1))

    def feed_forward(self, x_H: np.ndarray) -> np.ndarray:
        """(H,) -> (H,), the residual included."""
        normed_H = rms_norm(x_H, self.mlp_norm, self.eps)
        if self.router is None:
            return x_H + self.experts[0](normed_H)
        for expert, weight in route_one(self.router(normed_H).tolist(), self.top_k):
            x_H = x_H + weight * self.experts[expert](normed_H)
        return x_H


class _Expert:
    """A SwiGLU."""

    def __init__(self, expert: SwiGLU) -> None:
        self.gate_up = Matrices(expert.gate_proj.weight, expert.up_proj.weight)
        self.down = Matrix(expert.down_proj.weight)

    def __call__(self, x_H: np.ndarray) -> np.ndarray:
        """(H,) -> (H,)."""
        gate_W, up_W = np.split(self.gate_up(x_H), 2)
        return self.down(gate_W / (1 + np.exp(-gate_W)) * up_W)


def array(weight: Tensor) -> np.ndarray:
    """The weight in fp32, without a copy if it is so already."""
    return weight.detach().float().contiguous().numpy()


def rms_norm(x_H: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """`layers.RMSNorm` of one vector."""
    return x_H * (1 / math.sqrt(float(x_H.dot(x_H)) / len(x_H) + eps)) * weight


def attended(q_KRD: np.ndarray, k_KSD: np.ndarray, v_KSD: np.ndarray) -> np.ndarray:
    """(K, R, D): each query, scaled already, attends to all keys of its head.

    As products of matrices with vectors: over 1,000 keys a product of matrices would be shared among threads, which
    costs more than it saves.
    """
    logits_KRS = (k_KSD[:, None] @ q_KRD[..., None])[..., 0]
    shares_KRS = np.exp(logits_KRS - logits_KRS.max(-1, keepdims=True))
    y_KRD = (shares_KRS[:, :, None] @ v_KSD[:, None])[:, :, 0]
    return y_KRD / shares_KRS.sum(-1, keepdims=True)


def _head_norms(attention: Attention) -> np.ndarray:
    """(N + K, 2, D/2): the norms' weights of the heads that are rotated; those of queries hold attention's scale."""
    q_D, k_D = array(attention.q_norm.weight), array(attention.k_norm.weight)
    heads = [q_D / math.sqrt(len(q_D))] * attention.num_heads + [k_D] * attention.num_kv_heads
    return np.stack(heads).reshape(len(heads), 2, -1)


def route_one(logits: list[float], top_k: int) -> list[tuple[int, float]]:
    """Return the experts of a single token by its router's logits, with their weights, as `LocalMoE.forward` does."""
    best = max(logits)
    shares = [math.exp(logit - best) for logit in logits]
    chosen = sorted(range(len(logits)), key=lambda expert: -shares[expert])[:top_k]
    total = sum(shares[expert] for expert in chosen) if top_k > 1 else sum(shares)
    return [(expert, shares[expert] / total) for expert in chosen]
