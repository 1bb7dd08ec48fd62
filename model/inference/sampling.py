"""From the scores of the next token to one token: the steps of Hugging Face's `generate`, in its order.

Shapes in names: B batch, T tokens so far, V vocabulary, W windows of consecutive tokens, N tokens in a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BANNED = -math.inf


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Off: `top_k=0`, `top_p=1`, `repetition_penalty=1`, `no_repeat_ngram_size=0`.

    `do_sample=False` takes the best token (greedy) and looks only at the last two.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.2
    no_repeat_ngram_size: int = 0

    def problems(self) -> Iterator[str]:
        """One sentence for each value that makes no sense."""
        if self.do_sample and not 0 < self.temperature < math.inf:
            yield f"temperature is {self.temperature:g}: give a number above 0, or decode greedily for no randomness"
        if self.top_k < 0:
            yield f"top_k is {self.top_k}: give a number of tokens, or 0 for no limit"
        if not 0 < self.top_p <= 1:
            yield f"top_p is {self.top_p:g}: give a share above 0, and at most 1 (no limit)"
        if not 0 < self.repetition_penalty < math.inf:
            yield f"repetition_penalty is {self.repetition_penalty:g}: give a number above 0; 1 means none"
        if self.no_repeat_ngram_size < 0:
            yield f"no_repeat_ngram is {self.no_repeat_ngram_size}: give a length in tokens, or 0 to allow repeats"


class Seen:
    """The tokens that count as written: those of the prompts without padding, and the new ones."""

    def __init__(self, prompt_BP: Tensor, valid_BP: Tensor, room: int) -> None:
        batch, self.length = prompt_BP.shape
        self._ids = prompt_BP.new_empty((batch, self.length + room))
        # padding counts as one more occurrence of the row's last token, which changes nothing
        self._ids[:, : self.length] = torch.where(valid_BP, prompt_BP, prompt_BP[:, -1:])
        self._valid = None if bool(valid_BP.all()) else F.pad(valid_BP, (0, room), value=True)

    @property
    def ids_BT(self) -> Tensor:
        """All of them, in which a token may stand more often than in the text."""
        return self._ids[:, : self.length]

    @property
    def valid_BT(self) -> Tensor:
        """False where `ids_BT` only fills up."""
        return torch.ones_like(self.ids_BT, dtype=torch.bool) if self._valid is None else self._valid[:, : self.length]

    def add(self, token_B: Tensor) -> None:
        """One more token a row."""
        self._ids[:, self.length] = token_B
        self.length += 1


def process(scores_BV: Tensor, ids_BT: Tensor, valid_BT: Tensor, how: Sampling) -> Tensor:
    """Scores of the next token -> scores to choose by, (B, V); `valid_BT` is false on padding, which never counts."""
    scores_BV = penalise(scores_BV, Seen(ids_BT, valid_BT, 0), how)
    if not how.do_sample:
        return scores_BV
    return keep_top_p(keep_top_k(scores_BV / how.temperature, how.top_k), how.top_p)


def penalise(scores_BV: Tensor, seen: Seen, how: Sampling) -> Tensor:
    """The steps that look at the text so far, (B, V)."""
    if how.repetition_penalty != 1:
        scores_BV = penalise_repetition(scores_BV, seen.ids_BT, how.repetition_penalty)
    if how.no_repeat_ngram_size:
        scores_BV = forbid_repeated_ngrams(scores_BV, seen.ids_BT, seen.valid_BT, how.no_repeat_ngram_size)
    return scores_BV


def penalise_repetition(scores_BV: Tensor, ids_BT: Tensor, penalty: float) -> Tensor:
    """Divide the score of a token that has occurred by `penalty`, or multiply a negative one (Keskar et al. 2019)."""
    found_BT = scores_BV.gather(1, ids_BT)
    return scores_BV.scatter(1, ids_BT, torch.where(found_BT < 0, found_BT * penalty, found_BT / penalty))


def forbid_repeated_ngrams(scores_BV: Tensor, ids_BT: Tensor, valid_BT: Tensor, size: int) -> Tensor:
    """Ban every token that would complete a run of `size` tokens which has already occurred."""
    if size == 0 or ids_BT.shape[1] < size:
        return scores_BV
    ngrams_BWN = ids_BT.unfold(1, size, 1)
    last_BN = ids_BT[:, ids_BT.shape[1] - (size - 1) :]
    repeats_BW = (ngrams_BWN[:, :, :-1] == last_BN[:, None]).all(-1) & valid_BT.unfold(1, size, 1).all(-1)
    row, window = repeats_BW.nonzero(as_tuple=True)
    banned_BV = torch.zeros_like(scores_BV, dtype=torch.bool)
    banned_BV[row, ngrams_BWN[row, window, -1]] = True
    # a text that has used up the whole vocabulary (size 1) may go on
    banned_BV &= ~banned_BV.all(-1, keepdim=True)
    return scores_BV.masked_fill(banned_BV, BANNED)


def keep_top_k(scores_BV: Tensor, k: int) -> Tensor:
    """Ban all but the k best tokens; those that tie with the last of them stay."""
    if k == 0 or k >= scores_BV.shape[-1]:
        return scores_BV
    last_B1 = scores_BV.topk(k, dim=-1).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < last_B1, BANNED)


def keep_top_p(scores_BV: Tensor, p: float) -> Tensor:
    """Keep the smallest set of best tokens whose probability reaches p (Holtzman et al. 2020), at least one."""
    if p == 1:
        return scores_BV
    sorted_BV, order_BV = scores_BV.sort(dim=-1)  # ascending: the sum runs over the tail, which is what is cut
    tail_BV = sorted_BV.softmax(-1).cumsum(-1) <= 1 - p
    tail_BV[:, -1] = False
    return scores_BV.masked_fill(tail_BV.scatter(1, order_BV, tail_BV), BANNED)


def sample(scores_BV: Tensor, how: Sampling, uniform_B: list[float]) -> Tensor:
    """(B,) tokens drawn after temperature, top-k and top-p; `uniform_B` as in `draw`."""
    scores_BV = scores_BV / how.temperature
    candidates = _candidates(scores_BV, how)
    if candidates is None:
        return draw(keep_top_p(keep_top_k(scores_BV, how.top_k), how.top_p), uniform_B)
    return _draw_of_few(*candidates, how.top_p, uniform_B)


def _candidates(scores_BV: Tensor, how: Sampling) -> tuple[Tensor, Tensor] | None:
    """The scores (B, C) and numbers of the only tokens that can be drawn, best first.

    None where they are not few, or more tie with the last of them. To sort them costs a hundredth of sorting all.
    """
    if not 0 < how.top_k < scores_BV.shape[1]:
        return None
    best_BC, token_BC = scores_BV.topk(how.top_k + 1, dim=-1)
    if bool((best_BC[:, -1] == best_BC[:, -2]).any()):
        return None
    return best_BC[:, :-1], token_BC[:, :-1]


def _draw_of_few(best_BC: Tensor, token_BC: Tensor, p: float, uniform_B: list[float]) -> Tensor:
    """`draw` after `keep_top_p`, in fp64 and in NumPy: on so few numbers a call of PyTorch costs five of its calls."""
    score_BC, number_BC = best_BC.double().numpy(force=True), token_BC.numpy(force=True)
    share_BC = np.exp(score_BC - score_BC[:, :1])
    tail_BC = share_BC[:, ::-1].cumsum(-1)[:, ::-1]  # from the worst on, as there
    cut_BC = tail_BC <= (1 - p) * tail_BC[:, :1]
    cut_BC[:, 0] = False
    share_BC[cut_BC] = 0
    order_BC = number_BC.argsort(-1)
    cumulative_BC = np.take_along_axis(share_BC, order_BC, -1).cumsum(-1)
    point_B = np.array(uniform_B) * cumulative_BC[:, -1]
    place_B1 = (cumulative_BC <= point_B[:, None]).sum(-1, keepdims=True)
    chosen_B1 = np.take_along_axis(order_BC, place_B1, -1)
    return torch.from_numpy(np.take_along_axis(number_BC, chosen_B1, -1)[:, 0]).to(token_BC.device)


def draw(scores_BV: Tensor, uniform_B: list[float]) -> Tensor:
    """(B,) tokens: each row's token at its point of [0, 1) on the row's cumulative probability.

    The caller brings the random numbers, so that a row depends on no other and on no device's own generator.
    """
    # fp64 keeps point below the last sum; `right` steps over banned tokens, whose share of the line is empty
    cumulative_BV = scores_BV.softmax(-1).double().cumsum(-1)
    point_B = torch.tensor(uniform_B, dtype=torch.float64, device=scores_BV.device)
    return torch.searchsorted(cumulative_BV, point_B[:, None] * cumulative_BV[:, -1:], right=True)[:, 0]
