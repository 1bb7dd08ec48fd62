"""Attention over packed rows, where several documents lie one after the other in a row.

Shapes in names: B batch, T tokens of a row, N query heads, K key/value heads, R query heads that share a key/value
head, D head width, Q queries of a block, S keys that a block looks at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Queries of a block on CPU. With fixed blocks a matrix product has one of T / BLOCK shapes; cut at the documents' own
ends, each would be another, and the CPU's matrix library compiles and keeps a kernel for every shape it meets."""

_CAUSAL = 1  # of the memory-efficient kernel's masks the one that is causal from the upper left corner
_ALIGNED = 8  # a head's width on a GPU must be a multiple of it; a row of the mask of twice that


def document_starts(ids_BT: Tensor, bos_id: int, eos_id: int) -> Tensor:
    """Return the position (B, T) in its row at which the document of each token starts.

    A document starts at a BOS that directly follows an EOS; the same tokens inside a text, as in chat
    data, keep it together.
    """
    position = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    begins = torch.zeros_like(ids_BT)
    begins[:, 1:] = ((ids_BT[:, 1:] == bos_id) & (ids_BT[:, :-1] == eos_id)) * position[1:]
    return begins.cummax(-1).values


def document_mask(ids_BT: Tensor, bos_id: int, eos_id: int) -> Tensor:
    """(B, 1, T, T) bool, true where a token may look: itself and what came before it in its own document."""
    return _mask(document_starts(ids_BT, bos_id, eos_id))


def _mask(start_BT: Tensor) -> Tensor:
    position = torch.arange(start_BT.shape[1], device=start_BT.device)
    return ((start_BT[:, :, None] <= position) & (position <= position[:, None]))[:, None]


def document_ends(start_BT: Tensor) -> Tensor:
    """Return where documents end, counted over the rows laid end to end and after a 0: (D + 1,) int32, on the CPU."""
    batch, length = start_BT.shape
    begins_BT = start_BT.cpu() == torch.arange(length)
    begins = begins_BT.flatten().nonzero().flatten()
    return torch.cat((begins, torch.tensor([batch * length]))).to(torch.int32)


@dataclass(frozen=True)
class PackedRows:
    """Where the tokens of a batch of packed rows may look, in the form that the device is fastest with."""

    mask: Tensor | None
    """(B, 1, T, T): bool on CPU, else what is added to the logits, 0 or minus infinity, in the network's precision.
    None if the documents' ends say it."""
    first_key: list[list[int]] | None = None
    """Of row b and block q, the first key that one of its queries sees, rounded down to whole blocks; on CPU only,
    where the numbers are at hand without waiting for the device."""
    ends: Tensor | None = None
    """`document_ends`, on the device."""
    longest: int = 0
    """At least the tokens of the longest document."""

    @classmethod
    def of(
        cls,
        ids_BT: Tensor,
        bos_id: int,
        eos_id: int,
        *,
        mask_documents: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> PackedRows | None:
        """Return the mask of a batch of rows; None where plain causal attention says the same and is as fast."""
        if not mask_documents and device.type != "cpu":
            return None
        ids_BT = ids_BT.to(device, non_blocking=True)
        start_BT = document_starts(ids_BT, bos_id, eos_id) if mask_documents else torch.zeros_like(ids_BT)
        if device.type != "cpu":
            return cls(_bias(_mask(start_BT), dtype))
        return cls(_mask(start_BT), (start_BT[:, ::BLOCK] // BLOCK * BLOCK).tolist())

    @classmethod
    def by_document(
        cls,
        ids_BT: Tensor,
        bos_id: int,
        eos_id: int,
        *,
        mask_documents: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> PackedRows:
        """Return the ends of the documents in place of a mask; waits for a GPU if the ids are there."""
        length = ids_BT.shape[1]
        if ids_BT.is_meta:  # nobody knows the documents: whole rows, the most work
            return cls(None, ends=ids_BT.new_empty(len(ids_BT) + 1, dtype=torch.int32), longest=length)
        ids_BT = ids_BT.cpu()
        start_BT = document_starts(ids_BT, bos_id, eos_id) if mask_documents else torch.zeros_like(ids_BT)
        ends = document_ends(start_BT)
        longest = min(-(-int(ends.diff().max()) // BLOCK) * BLOCK, ids_BT.numel())
        if device.type == "cuda":
            ends = ends.pin_memory().to(device, non_blocking=True)
        return cls(None, ends=ends, longest=longest)

    def attend(self, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        """(B, N, T, D) attention of each token to its own document so far."""
        if self.first_key is not None:
            return _BlockAttention.apply(q_BNTD, k_BKTD, v_BKTD, self.mask, self.first_key)
        # SDPA's own grouped-query switch leaves the memory-efficient kernel, the best one a T4 has
        repeats = q_BNTD.shape[1] // k_BKTD.shape[1]
        if self.ends is not None:  # which lies in memory as it comes from the projections
            k_BTND, v_BTND = (t.transpose(1, 2).repeat_interleave(repeats, dim=2) for t in (k_BKTD, v_BKTD))
            q_k_v = q_BNTD.transpose(1, 2), k_BTND, v_BTND
            return _DocumentAttention.apply(*q_k_v, self.ends, self.longest).transpose(1, 2)
        k_BNTD, v_BNTD = (t.repeat_interleave(repeats, dim=1) for t in (k_BKTD, v_BKTD))
        if q_BNTD.is_cuda and q_BNTD.shape[3] % _ALIGNED == 0:
            return _EfficientAttention.apply(q_BNTD, k_BNTD, v_BNTD, self.mask)
        return F.scaled_dot_product_attention(q_BNTD, k_BNTD, v_BNTD, attn_mask=self.mask)


def _bias(mask_B1TT: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where the mask is true, else minus infinity; rows of memory are padded as the GPU's kernel needs it."""
    batch, _, queries, keys = mask_B1TT.shape
    padded = (keys + 2 * _ALIGNED - 1) // (2 * _ALIGNED) * 2 * _ALIGNED
    bias = torch.full((batch, 1, queries, padded), float("-inf"), dtype=dtype, device=mask_B1TT.device)[..., :keys]
    return bias.masked_fill_(mask_B1TT, 0.0)


class _EfficientAttention(torch.autograd.Function):
    """PyTorch's memory-efficient kernel, which `scaled_dot_product_attention` would choose here too, but going backward
    one block goes over all keys of a query.

    With several, as the kernel takes for few heads, the parts of a query's gradient are added up in the order in which
    the blocks finish, and no two runs are the same.
    """

    @staticmethod
    def forward(ctx, q_BNTD: Tensor, k_BNTD: Tensor, v_BNTD: Tensor, bias_B1TT: Tensor) -> Tensor:
        """(B, N, T, D)."""
        q, k, v = (t.transpose(1, 2) for t in (q_BNTD, k_BNTD, v_BNTD))
        bias = bias_B1TT.expand(-1, q.shape[2], -1, -1)
        y, log_sum_exp, seed, offset, length, _ = torch.ops.aten._efficient_attention_forward(
            q, k, v, bias, None, None, None, None, 0.0, 0, True
        )
        ctx.save_for_backward(q, k, v, bias, y, log_sum_exp, seed, offset)
        ctx.length = length
        return y.transpose(1, 2)

    @staticmethod
    def backward(ctx, grad_BNTD: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        q, k, v, bias, y, log_sum_exp, seed, offset = ctx.saved_tensors
        grads = torch.ops.aten._efficient_attention_backward(
            grad_BNTD.transpose(1, 2),
            *(q, k, v, bias, y, None, None, q.shape[1], ctx.length, log_sum_exp, 0.0, seed, offset, 0, False),
            num_splits_key=1,
        )
        return (*(grad.transpose(1, 2) for grad in grads[:3]), None)


class _DocumentAttention(torch.autograd.Function):
    """The same kernel over documents of different lengths: causal in each, nothing that a mask would hide is computed.

    All rows lie end to end as if they were one. Going backward one block goes over all keys of a query, as above.
    """

    @staticmethod
    def forward(ctx, q_BTND: Tensor, k_BTND: Tensor, v_BTND: Tensor, ends: Tensor, longest: int) -> Tensor:
        """(B, T, N, D)."""
        q, k, v = (t.flatten(0, 1)[None] for t in (q_BTND, k_BTND, v_BTND))
        y, log_sum_exp, seed, offset, *_ = torch.ops.aten._efficient_attention_forward(
            q, k, v, None, ends, ends, longest, longest, 0.0, _CAUSAL, True
        )
        ctx.save_for_backward(q, k, v, ends, y, log_sum_exp, seed, offset)
        ctx.longest = longest
        return y.view_as(q_BTND)

    @staticmethod
    def backward(ctx, grad_BTND: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        q, k, v, ends, y, log_sum_exp, seed, offset = ctx.saved_tensors
        grads = torch.ops.aten._efficient_attention_backward(
            grad_BTND.flatten(0, 1)[None],
            *(q, k, v, None, y, ends, ends, ctx.longest, ctx.longest, log_sum_exp, 0.0, seed, offset, _CAUSAL, False),
            num_splits_key=1,
        )
        return (*(grad.view_as(grad_BTND) for grad in grads[:3]), None, None)


class _BlockAttention(torch.autograd.Function):
    """Softmax attention, a block of queries at a time against the keys that its documents reach back to.

    PyTorch's kernel for CPUs computes what the mask hides as well, and its backward pass takes twice the time of these
    matrix products (docs/dev/performance.md). The query heads that share a key are one matrix, so no key is repeated.
    The probabilities are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask_B1TT: Tensor, first_key: list[list[int]]
    ) -> Tensor:
        """(B, N, T, D), laid out so that merging the heads costs nothing."""
        batch, heads, length, width = q_BNTD.shape
        kv_heads = k_BKTD.shape[1]
        q, k, v = (t.contiguous() for t in (q_BNTD, k_BKTD, v_BKTD))
        out_BTND = q.new_empty(batch, length, heads, width)
        kept = []
        for b, start, end, first in _blocks(length, first_key):
            q_KrD = _rows(q, b, start, end, kv_heads)
            k_KSD, v_KSD = k[b, :, first:end], v[b, :, first:end]
            hidden_QS = ~mask_B1TT[b, 0, start:end, first:end]
            p_KrS = _probabilities(q_KrD, k_KSD, hidden_QS)
            y = torch.bmm(p_KrS, v_KSD).view(heads, end - start, width)
            out_BTND[b, start:end] = y.transpose(0, 1)
            kept.append(p_KrS)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.first_key = first_key
        return out_BTND.transpose(1, 2)

    @staticmethod
    def backward(ctx, grad_BNTD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of queries, keys and values."""
        q, k, v, *kept = ctx.saved_tensors
        length, kv_heads, scale = q.shape[2], k.shape[1], q.shape[3] ** -0.5
        grad = grad_BNTD.contiguous()
        # the sums over the blocks are kept in fp32
        grad_q, grad_k = torch.empty_like(q), torch.zeros_like(k, dtype=torch.float32)
        grad_v = torch.zeros_like(grad_k)
        for p_KrS, (b, start, end, first) in zip(kept, _blocks(length, ctx.first_key), strict=True):
            q_KrD, g_KrD = (_rows(t, b, start, end, kv_heads) for t in (q, grad))
            k_KSD, v_KSD = k[b, :, first:end], v[b, :, first:end]
            grad_v[b, :, first:end] += torch.bmm(p_KrS.mT, g_KrD)
            grad_p_KrS = torch.bmm(g_KrD, v_KSD.mT)
            softmax_backward = torch._softmax_backward_data  # pyright: ignore[reportPrivateImportUsage]
            grad_s_KrS = softmax_backward(grad_p_KrS, p_KrS, -1, p_KrS.dtype).mul_(scale)
            grad_q[b, :, start:end] = torch.bmm(grad_s_KrS, k_KSD).view(-1, end - start, q.shape[3])
            grad_k[b, :, first:end] += torch.bmm(grad_s_KrS.mT, q_KrD)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _blocks(length: int, first_key: list[list[int]]) -> list[tuple[int, int, int, int]]:
    """Return (row, first query, end of the queries and keys, first key) of every block."""
    return [
        (row, start, min(start + BLOCK, length), first)
        for row, firsts in enumerate(first_key)
        for start, first in zip(range(0, length, BLOCK), firsts, strict=True)
    ]


def _rows(t_BNTD: Tensor, row: int, start: int, end: int, kv_heads: int) -> Tensor:
    """(K, R x Q, D): a block's queries, those that share keys one below the other."""
    return t_BNTD[row, :, start:end].reshape(kv_heads, -1, t_BNTD.shape[3])


def _probabilities(q_KrD: Tensor, k_KSD: Tensor, hidden_QS: Tensor) -> Tensor:
    """Return the probabilities (K, R x Q, S)."""
    logits = torch.baddbmm(q_KrD.new_empty(()), q_KrD, k_KSD.mT, beta=0, alpha=q_KrD.shape[-1] ** -0.5)
    logits.view(logits.shape[0], -1, *hidden_QS.shape).masked_fill_(hidden_QS, float("-inf"))
    return logits.softmax(-1)
