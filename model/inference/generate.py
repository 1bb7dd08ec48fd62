"""The decoding loop: prompts in, prompts with new tokens out.

Shapes in names: B batch, P tokens of the (padded) prompt, T tokens of this pass, S tokens attended to, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from model.inference.decode_numpy import NumpyDecoder
from model.inference.kv_cache import KVCache
from model.inference.sampling import BANNED, SamplingParameters, TokenHistory, choose

if TYPE_CHECKING:
    from model.transformer import CausalLM

Streamer = Callable[[list[int], Tensor], None]


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
    seed: int | None = None,
    first_row: int = 0,
    first_tokens: Sequence[Sequence[int]] = (),
    streamer: Streamer | None = None,
) -> Tensor:
    """Continue prompts, as a method: `model.generate(input_ids, max_new_tokens=50, top_k=50)`.

    `input_ids` (B, P) long; prompts of different lengths are padded on the left, with 0 there in `attention_mask`
    (B, P). Returns (B, P + new) ids, prompts included. A row that has reached EOS (`eos_token_id`, by default the
    config's; a negative one stops nothing) is filled up with `pad_token_id`, and the call ends when all rows have.

    Row i draws from its own random numbers, made from `seed` and `first_row + i`, so its text depends neither on
    the rows beside it nor on how prompts are split into batches (but for rounding: a matrix product may differ in its
    last bit with the size of the batch, and a single unpadded text of a 16-bit model on a CPU is decoded in fp32: see
    model/inference/decode_numpy.py). Without `seed` they follow `torch.manual_seed`. A row's first new token is one of
    its `first_tokens`, if it has any. `streamer` is called after each step with the B new tokens and the
    model's fp32 logits (B, V) for them, which the next step may overwrite; what it raises ends the call. Raises
    GenerationError.
    """
    parameters = SamplingParameters(do_sample, temperature, top_k, top_p, repetition_penalty, no_repeat_ngram_size)
    device = model.model.embed_tokens.weight.device
    prompt_BP = input_ids.to(device)
    valid_BP = (torch.ones_like(prompt_BP) if attention_mask is None else attention_mask.to(device)).bool()
    _check(model, prompt_BP, valid_BP, max_new_tokens, parameters)
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    rngs = [random.Random(f"{seed}:{first_row + row}") for row in range(len(prompt_BP))]
    eos_id, pad_id = model.config.eos_token_id if eos_token_id is None else eos_token_id, model.config.pad_token_id

    ids = F.pad(prompt_BP, (0, max_new_tokens), value=pad_id)
    running = [True] * len(ids)
    length = prompt_BP.shape[1]
    with _evaluating(model), torch.inference_mode():
        history = TokenHistory(prompt_BP, valid_BP, max_new_tokens)
        for logits_BV in _next_logits(model, ids, valid_BP):
            _check_finite(logits_BV)
            allowed_BV = _only(logits_BV, first_tokens) if length == prompt_BP.shape[1] else logits_BV
            token_B = choose(allowed_BV, history, parameters, [rng.random() for rng in rngs])
            tokens = [token if runs else pad_id for token, runs in zip(token_B.tolist(), running, strict=True)]
            ids[:, length] = token_B if all(running) else token_B.new_tensor(tokens)
            history.append(ids[:, length])
            length += 1
            if streamer is not None:
                streamer(tokens, logits_BV)
            running = [runs and token != eos_id for runs, token in zip(running, tokens, strict=True)]
            if length == ids.shape[1] or not any(running):
                break
    return ids[:, :length].clone()


def _check(
    model: CausalLM, ids_BP: Tensor, valid_BP: Tensor, max_new_tokens: int, parameters: SamplingParameters
) -> None:
    problems = list(parameters.problems())
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


def _only(logits_BV: Tensor, allowed: Sequence[Sequence[int]]) -> Tensor:
    """Ban all tokens but the allowed ones of each row; a row without any may take all."""
    banned_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    for row, tokens in enumerate(allowed):
        if tokens:
            banned_BV[row] = True
            banned_BV[row, list(tokens)] = False
    return logits_BV.masked_fill(banned_BV, BANNED)


def _check_finite(logits_BV: Tensor) -> None:
    # a sum of finite numbers may overflow, but it is the cheaper question
    if not math.isfinite(logits_BV.sum()) and not logits_BV.isfinite().all():
        raise GenerationError("the model's output is not finite: its training has diverged, or its precision overflows")


@contextmanager
def _evaluating(model: CausalLM) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _next_logits(model: CausalLM, ids: Tensor, prompt_valid_BP: Tensor) -> Iterator[Tensor]:
    """Yield the fp32 logits (B, V) of each next token; the caller writes the token it chose into `ids` in between.

    The first pass reads the prompt, each later one the token written last. The next pass may overwrite what this one
    gave.
    """
    batch, capacity = ids.shape
    end = prompt_valid_BP.shape[1]
    valid = F.pad(prompt_valid_BP, (0, capacity - end), value=True)
    padded = not bool(prompt_valid_BP.all())
    position = (valid.cumsum(-1) - 1).clamp(min=0)
    weight = model.model.embed_tokens.weight
    cache = KVCache(model.config, batch, capacity, device=weight.device, dtype=weight.dtype)
    while True:
        past = cache.length
        mask = attention_mask_for(valid, past, end) if padded else None
        new = slice(past, end)
        logits = model.logits(ids[:, new], mask=mask, position_BT=position[:, new], cache=cache, last_only=True)
        yield logits[:, -1].float()
        if past == 0 and not padded and NumpyDecoder.supports(model, batch):
            yield from NumpyDecoder(model, cache).steps(ids[0], end)
        end += 1


def attention_mask_for(valid: Tensor, past: int, end: int) -> Tensor:
    """(B, 1, T, S) bool for the tokens past..end of left-padded rows; `valid` (B, at least end) is false on padding.

    Padding sees itself, since a softmax over nothing is NaN; nothing sees padding.
    """
    causal_TS = torch.ones(end - past, end, dtype=torch.bool, device=valid.device).tril(past)
    return (causal_TS & valid[:, None, None, :end]) | causal_TS.triu(past)
