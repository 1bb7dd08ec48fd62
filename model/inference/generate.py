"""Text from the network: the decoding loop, and token ids to text while they arrive.

Shapes in names: B batch, P tokens of the (padded) prompt, T tokens of this pass, S tokens attended to, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from model.inference.decode import Decoding
from model.inference.decode_numpy import OneRow
from model.inference.kv_cache import KVCache
from model.inference.sampling import Sampling, Seen, penalise, sample

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model.transformer import CausalLM

Streamer = Callable[[list[int]], None]


class GenerationError(ValueError):
    """Input or a model that nothing can be generated from; the message is one sentence."""


def generate(
    model: CausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 50,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 0.95,
    repetition_penalty: float = 1.2,
    no_repeat_ngram_size: int = 0,
    eos_token_id: int | None = None,
    use_cache: bool = True,
    seed: int | None = None,
    first_row: int = 0,
    streamer: Streamer | None = None,
) -> Tensor:
    """Continue prompts, as a method: `model.generate(input_ids, max_new_tokens=50, top_k=50)`.

    `input_ids` (B, P) long; prompts of different lengths are padded on the left, with 0 there in `attention_mask`
    (B, P). Returns (B, P + new) ids, prompts included. A row that has reached the end mark (`eos_token_id`, by default
    the config's; a negative one stops nothing) is filled up with `pad_token_id`, and the call ends when all rows have.

    Row i draws from its own random numbers, made from `seed` and `first_row + i`, so its text depends neither on
    the rows beside it nor on how prompts are split into batches (but for rounding: a matrix product may differ in its
    last bit with the size of the batch, and a single unpadded text of a 16-bit model on a CPU is decoded in fp32: see
    model/inference/decode_numpy.py). Without `seed` they follow `torch.manual_seed`.

    `streamer` is called after each step with the B new tokens. `use_cache=False` reads the whole text again for
    every token, to check the cache against. Raises GenerationError.
    """
    how = Sampling(do_sample, temperature, top_k, top_p, repetition_penalty, no_repeat_ngram_size)
    end_id = model.config.eos_token_id if eos_token_id is None else eos_token_id
    device = model.model.embed_tokens.weight.device
    input_ids = input_ids.to(device)
    valid_BP = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device)
    _check(model, input_ids, valid_BP.bool(), max_new_tokens, how)
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    luck = [random.Random(f"{seed}:{first_row + row}") for row in range(len(input_ids))]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            ids = _decode(model, input_ids, valid_BP.bool(), max_new_tokens, how, end_id, use_cache, luck, streamer)
    finally:
        model.train(was_training)
    return ids.clone()  # an ordinary tensor again, which may take part in training


def _check(model: CausalLM, ids_BP: Tensor, valid_BP: Tensor, max_new_tokens: int, how: Sampling) -> None:
    problems = list(how.problems())
    limit = model.config.max_position_embeddings
    if max_new_tokens < 1:
        problems.append(f"max_new_tokens is {max_new_tokens}: give at least 1")
    if ids_BP.ndim != 2 or 0 in ids_BP.shape:
        problems.append(f"input_ids have the shape {tuple(ids_BP.shape)}: give (batch, tokens), at least one of each")
    elif valid_BP.shape != ids_BP.shape:
        problems.append(f"attention_mask has the shape {tuple(valid_BP.shape)}, input_ids {tuple(ids_BP.shape)}")
    elif not valid_BP[:, -1].all() or (valid_BP[:, :-1] & ~valid_BP[:, 1:]).any():
        problems.append("attention_mask has a 0 after a 1: pad on the left, and give each row at least one token")
    elif ids_BP.min() < 0 or ids_BP.max() >= model.config.vocab_size:
        problems.append(f"input_ids go beyond the model's vocabulary of {model.config.vocab_size:,}")
    elif ids_BP.shape[1] + max_new_tokens > limit:
        problems.append(
            f"{ids_BP.shape[1]:,} tokens of prompt and {max_new_tokens:,} new ones do not fit the model's "
            f"{limit:,} positions: shorten one of them"
        )
    if problems:
        raise GenerationError("; ".join(problems))


def _decode(
    model: CausalLM,
    prompt_BP: Tensor,
    prompt_valid_BP: Tensor,
    max_new_tokens: int,
    how: Sampling,
    end_id: int,
    use_cache: bool,
    luck: list[random.Random],
    streamer: Streamer | None,
) -> Tensor:
    """The loop: one pass and one token a step, until every row has ended or is long enough."""
    batch, start = prompt_BP.shape
    ids = prompt_BP.new_full((batch, start + max_new_tokens), model.config.pad_token_id)
    ids[:, :start] = prompt_BP
    passes = _Passes(model, prompt_valid_BP, max_new_tokens, use_cache)
    seen = Seen(prompt_BP, prompt_valid_BP, max_new_tokens)
    running = [True] * batch
    for end in range(start, start + max_new_tokens):
        scores_BV = passes.next_scores(ids, end)
        token_B = _choose(scores_BV, seen, how, luck)
        tokens = token_B.tolist()
        if not all(running):
            tokens = [token if runs else model.config.pad_token_id for token, runs in zip(tokens, running, strict=True)]
            token_B = token_B.new_tensor(tokens)
        ids[:, end] = token_B
        seen.add(token_B)
        if streamer is not None:
            streamer(tokens)
        running = [runs and token != end_id for runs, token in zip(running, tokens, strict=True)]
        if not any(running):
            break
    return ids[:, : end + 1]


class _Passes:
    """The passes through the network that one text needs: the prompt, then a token at a time."""

    def __init__(self, model: CausalLM, prompt_valid_BP: Tensor, max_new_tokens: int, use_cache: bool) -> None:
        self.model = model
        batch, start = prompt_valid_BP.shape
        self.start = start
        self.valid = F.pad(prompt_valid_BP, (0, max_new_tokens), value=True)
        self.position = (self.valid.cumsum(-1) - 1).clamp(min=0)
        self.padded = not bool(prompt_valid_BP.all())
        self.cache = _new_cache(model, batch, start + max_new_tokens) if use_cache else None
        self.steps: Decoding | OneRow | None = None

    def next_scores(self, ids: Tensor, end: int) -> Tensor:
        """(B, V) fp32 scores of the token after ids[:, :end], which the next call may overwrite."""
        past = self.cache.length if self.cache is not None else 0
        if past == self.start:
            self.steps = self._fast_steps()
        if isinstance(self.steps, OneRow):
            return self.steps.step(int(ids[0, end - 1]))
        if self.steps is not None:
            position, visible = (self.position[:, end - 1], self.valid[:, :end]) if self.padded else (None, None)
            return self.steps.step(ids[:, end - 1], position, visible)
        mask = attention_mask_for(self.valid, past, end) if self.padded else None
        scores = self.model.logits(
            ids[:, past:end], mask=mask, position_BT=self.position[:, past:end], cache=self.cache, last_only=True
        )[:, -1]
        return scores.float()

    def _fast_steps(self) -> Decoding | OneRow | None:
        if not self.padded and OneRow.fits(self.model, len(self.valid)):
            return OneRow(self.model, self.cache)
        return Decoding(self.model, self.cache) if Decoding.fits(self.model) else None


def _new_cache(model: CausalLM, batch: int, capacity: int) -> KVCache:
    weight = model.model.embed_tokens.weight
    return KVCache(model.config, batch, capacity, device=weight.device, dtype=weight.dtype)


def _choose(scores_BV: Tensor, seen: Seen, how: Sampling, luck: list[random.Random]) -> Tensor:
    """(B,) next tokens."""
    if not math.isfinite(scores_BV.sum()) and not scores_BV.isfinite().all():  # a sum of finite ones may overflow
        raise GenerationError("the model's output is not finite: its training has diverged, or its precision overflows")
    scores_BV = penalise(scores_BV, seen, how)
    if not how.do_sample:
        return scores_BV.argmax(-1)
    return sample(scores_BV, how, [row.random() for row in luck])


def attention_mask_for(valid: Tensor, past: int, end: int) -> Tensor:
    """(B, 1, T, S) bool for the tokens past..end of left-padded rows; `valid` (B, at least end) is false on padding.

    Padding sees itself, since a softmax over nothing is NaN; nothing sees padding.
    """
    causal_TS = torch.ones(end - past, end, dtype=torch.bool, device=valid.device).tril(past)
    return (causal_TS & valid[:, None, None, :end]) | causal_TS.triu(past)


def pad_left(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths -> `input_ids` and `attention_mask`, both (B, P)."""
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def until_end(new_ids: list[int], end_id: int) -> tuple[list[int], bool]:
    """The new tokens of one row before its end mark, and whether there was one."""
    if end_id in new_ids:
        return new_ids[: new_ids.index(end_id)], True
    return new_ids, False


class TextStream:
    """Token ids in, one at a time; text out as soon as it is certain.

    A token of a byte-level BPE may end inside a character, which decodes to U+FFFD until the rest has come: that
    one is held back. All pieces joined are what decoding all ids at once gives.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.context = 0
        self.shown = 0

    def push(self, token: int) -> str:
        """The text that this token has made certain; often none, at times more than its own."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        whole = not text.endswith("\ufffd")
        piece = text[self.shown :] if whole else text[self.shown : -1]
        self.shown += len(piece)
        if whole and text:
            # Nothing later changes a whole character, so decoding restarts here, and stays cheap. The tokens since the
            # last restart remain, because some tokenizers drop the space in front of a text's first word.
            self.ids, self.context = self.ids[self.context :], len(self.ids) - self.context
            self.shown = len(self.tokenizer.decode(self.ids))
        return piece

    def flush(self) -> str:
        """What was held back, at the end."""
        piece = self.tokenizer.decode(self.ids)[self.shown :]
        self.ids, self.context, self.shown = [], 0, 0
        return piece
