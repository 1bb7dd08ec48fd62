"""A model with its tokenizer: prompts in, texts out, and text while its tokens arrive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from common.errors import UserError
from common.training_text import TrainingText
from model.inference.generate import Streamer
from model.inference.prompts import Prompt, PromptEncoder, PromptTokens

if TYPE_CHECKING:
    from model.transformer import CausalLM


def pad_left(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return prompts of different lengths as `input_ids` and `attention_mask`, both (B, P)."""
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def until_eos(new_ids: list[int], eos_id: int) -> tuple[list[int], bool]:
    """Return the new tokens of one row before its EOS, and whether there was one."""
    if eos_id in new_ids:
        return new_ids[: new_ids.index(eos_id)], True
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
        """Return the text that this token has made certain; often none, at times more than its own."""
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
        """Return what was held back, at the end."""
        piece = self.tokenizer.decode(self.ids)[self.shown :]
        self.ids, self.context, self.shown = [], 0, 0
        return piece


@dataclass(frozen=True)
class Completion:
    """A continuation; `tokens` counts what it is made of, without EOS, and `finish` is "end_mark" or "length"."""

    text: str
    tokens: int
    finish: str


class TextGenerator:
    """Continue prompts with the keyword arguments of `CausalLM.generate` that are given in `sampling`.

    No two texts of one generator share their random numbers; without a seed they differ from run to run.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int,
        seed: int | None,
        training_text: TrainingText | None = None,
        **sampling: Any,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.encoder = PromptEncoder(tokenizer, training_text)
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
        self.written = 0

    def encode(self, prompt: Prompt) -> PromptTokens:
        """Return the prompt's tokens behind BOS; raise UserError if no positions are left for the new tokens."""
        positions = self.model.config.max_position_embeddings
        try:
            tokens = self.encoder.encode_behind(self.model.config.bos_token_id, prompt.text)
        except (UnicodeEncodeError, TypeError):
            # half a surrogate pair: from JSON, or Python's stand-in for a byte that it could not decode
            raise UserError(f"{prompt.source} holds something that is no character: write it in UTF-8") from None
        if len(tokens.ids) + self.max_new_tokens > positions:
            raise UserError(
                f"{prompt.source} has {len(tokens.ids):,} tokens, and with --max_new_tokens {self.max_new_tokens:,} "
                f"the model's {positions:,} positions are too few: shorten one"
            )
        return tokens

    def complete(self, prompts: list[PromptTokens], batch_size: int) -> Iterator[Completion]:
        """Yield a completion of each prompt."""
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            for prompt, new_ids in zip(batch, self._generate(batch), strict=True):
                ids, ended = until_eos(new_ids, self.model.config.eos_token_id)
                text = self.tokenizer.decode(ids).removeprefix(prompt.held)
                yield Completion(text, len(ids), "end_mark" if ended else "length")

    def stream(self, prompt: PromptTokens, write: Callable[[str], object]) -> None:
        """Continue one prompt, and give `write` each piece of the text once it is certain."""
        text, eos_id = TextStream(self.tokenizer), self.model.config.eos_token_id
        held = [prompt.held]  # on the screen already; what is certain of the first token begins with it

        def push(new_ids: list[int], _logits_BV: Tensor) -> None:
            if new_ids[0] != eos_id:
                write(text.push(new_ids[0]).removeprefix(held[0]))
                held[0] = ""

        self._generate([prompt], push)
        write(text.flush())

    def _generate(self, prompts: list[PromptTokens], streamer: Streamer | None = None) -> list[list[int]]:
        ids, mask = pad_left([prompt.ids for prompt in prompts], self.model.config.pad_token_id)
        output = self.model.generate(
            ids,
            mask,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            first_row=self.written,
            first_tokens=[prompt.first for prompt in prompts],
            streamer=streamer,
            **self.sampling,
        )
        self.written += len(prompts)
        return output[:, ids.shape[1] :].tolist()
