"""From the logits of the next token to one token: the steps of Hugging Face's `generate`, in its order.

Shapes in names: B batch, T tokens so far, V vocabulary, C candidates, W windows of consecutive tokens, N tokens in a
window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BANNED = -math.inf


@dataclass(frozen=True)
class SamplingParameters:
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
        """Yield one sentence for each value that makes no sense."""
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


class TokenHistory:
    """The tokens that a repetition is looked for in: those of the prompts without padding, and the new ones."""

    def __init__(self, prompt_BP: Tensor, valid_BP: Tensor, max_new_tokens: int) -> None:
        # padding counts as one more occurrence of the row's last token, which changes no penalty
        self._ids = F.pad(torch.where(valid_BP, prompt_BP, prompt_BP[:, -1:]), (0, max_new_tokens))
        self._valid = F.pad(valid_BP, (0, max_new_tokens), value=True)
        self.length = prompt_BP.shape[1]

    @property
    def ids_BT(self) -> Tensor:
        """The tokens so far; a padded row repeats its last one."""
        return self._ids[:, : self.length]

    @property
    def valid_BT(self) -> Tensor:
        """False where `ids_BT` stands for padding."""
        return self._valid[:, : self.length]

    def append(self, token_B: Tensor) -> None:
        """Add one token to each row."""
        self._ids[:, self.length] = token_B
        self.length += 1


def choose(logits_BV: Tensor, history: TokenHistory, parameters: SamplingParameters, uniform_B: list[float]) -> Tensor:
    """Return the next token of each row (B,); `uniform_B` are its random numbers in [0, 1), unused by greedy."""
    if parameters.repetition_penalty != 1:
        logits_BV = penalise_repetition(logits_BV, history.ids_BT, parameters.repetition_penalty)
    if size := parameters.no_repeat_ngram_size:
        logits_BV = forbid_repeated_ngrams(logits_BV, history.ids_BT, history.valid_BT, size)
    return sample(logits_BV, parameters, uniform_B) if parameters.do_sample else logits_BV.argmax(-1)


def penalise_repetition(logits_BV: Tensor, ids_BT: Tensor, penalty: float) -> Tensor:
    """Divide the logit of a token that has occurred by `penalty`, or multiply a negative one (Keskar et al. 2019)."""
    found_BT = logits_BV.gather(1, ids_BT)
    return logits_BV.scatter(1, ids_BT, torch.where(found_BT < 0, found_BT * penalty, found_BT / penalty))


def forbid_repeated_ngrams(logits_BV: Tensor, ids_BT: Tensor, valid_BT: Tensor, size: int) -> Tensor:
    """Ban every token that would complete an n-gram of `size` tokens which has already occurred."""
    if ids_BT.shape[1] < size:
        return logits_BV
    ngrams_BWN = ids_BT.unfold(1, size, 1)
    last_BN = ids_BT[:, ids_BT.shape[1] - (size - 1) :]
    repeats_BW = (ngrams_BWN[:, :, :-1] == last_BN[:, None]).all(-1) & valid_BT.unfold(1, size, 1).all(-1)
    row, window = repeats_BW.nonzero(as_tuple=True)
    banned_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    banned_BV[row, ngrams_BWN[row, window, -1]] = True
    # a text that has used up the whole vocabulary (size 1) may go on
    banned_BV &= ~banned_BV.all(-1, keepdim=True)
    return logits_BV.masked_fill(banned_BV, BANNED)


def sample(logits_BV: Tensor, parameters: SamplingParameters, uniform_B: list[float]) -> Tensor:
    """Draw a token (B,) for each row after temperature, top-k and top-p (Holtzman et al. 2020).

    A row's candidates lie side by side on a line, each as long as its probability; its random number is a point on it.
    Top-p ends the line with the first of the best candidates at which the probability reaches p. The caller brings the
    random numbers, so that a row depends on no other and on no device's own generator.
    """
    logits_BC, token_BC = _candidates(logits_BV / parameters.temperature, parameters)
    # fp64 keeps a point below the line's end; `right` steps over banned tokens, whose share of the line is empty
    end_BC = logits_BC.softmax(-1).double().cumsum(-1)
    if parameters.top_p < 1:
        last_B1 = (end_BC < parameters.top_p * end_BC[:, -1:]).sum(-1, keepdim=True).clamp(max=end_BC.shape[1] - 1)
        length_B1 = end_BC.gather(1, last_B1)
    else:
        length_B1 = end_BC[:, -1:]
    point_B1 = torch.tensor(uniform_B, dtype=torch.float64, device=end_BC.device)[:, None] * length_B1
    place_B1 = torch.searchsorted(end_BC, point_B1, right=True)
    return (place_B1 if token_BC is None else token_BC.gather(1, place_B1))[:, 0]


def _candidates(logits_BV: Tensor, parameters: SamplingParameters) -> tuple[Tensor, Tensor | None]:
    """Return the logits (B, C) of the tokens that may be drawn, and which they are; best first if top-p is to cut them.

    None stands for all tokens in their own order, which spares the sorting.
    """
    if 0 < parameters.top_k < logits_BV.shape[1]:
        return logits_BV.topk(parameters.top_k, dim=-1)
    return logits_BV.sort(dim=-1, descending=True) if parameters.top_p < 1 else (logits_BV, None)
