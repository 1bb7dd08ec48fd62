"""A model with its tokenizer: prompts in, texts out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from common.errors import UserError
from common.training_text import TrainingText
from model.inference.generate import Streamer
from model.inference.prompt_tokens import PromptEncoder, PromptTokens
from model.inference.prompts import Prompt
from model.inference.text import TextStream, pad_left, until_eos
from model.transformer import CausalLM


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
        bos_id, positions = self.model.config.bos_token_id, self.model.config.max_position_embeddings
        try:
            tokens = self.encoder.encode(prompt.text)
        except (UnicodeEncodeError, TypeError):
            # half a surrogate pair: from JSON, or Python's stand-in for a byte that it could not decode
            raise UserError(f"{prompt.source} holds something that is no character: write it in UTF-8") from None
        ids = tokens.ids if tokens.ids[:1] == [bos_id] else [bos_id, *tokens.ids]
        if len(ids) + self.max_new_tokens > positions:
            raise UserError(
                f"{prompt.source} has {len(ids):,} tokens, and with --max_new_tokens {self.max_new_tokens:,} "
                f"the model's {positions:,} positions are too few: shorten one"
            )
        return replace(tokens, ids=ids)

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

        def push(new_ids: list[int]) -> None:
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
