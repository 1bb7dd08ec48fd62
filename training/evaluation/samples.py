"""Continuations of fixed prompts while a model trains: what no curve shows."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from corpus.shards import TokenStream
from model import CausalLM, ModelConfig, pad_left

PROMPT_TOKENS, NEW_TOKENS, COUNT = 12, 60, 3
TEMPERATURE, TOP_P = 0.8, 0.95


@dataclass(frozen=True)
class Prompt:
    """The first tokens of a validation document."""

    ids: list[int]
    text: str


def fixed_prompts(stream: TokenStream, tokenizer: Tokenizer, config: ModelConfig) -> list[Prompt]:
    """The beginnings of the first few validation documents."""
    row_length = 2048
    rows = stream.num_rows(row_length)
    ids = stream.batch([0], row_length if rows else len(stream) - 1)[0].tolist()
    marks = (config.eos_token_id, config.bos_token_id)
    starts = [0, *(i for i in range(1, len(ids)) if (ids[i - 1], ids[i]) == marks)]
    prompts = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        document = ids[start:end]
        if len(prompts) < COUNT and len(document) > 2:
            kept = document[: min(PROMPT_TOKENS, max(2, len(document) // 2))]
            prompts.append(Prompt(kept, tokenizer.decode(kept)))
    return prompts


def continue_prompts(model: CausalLM, tokenizer: Tokenizer, prompts: list[Prompt], seed: int) -> list[str]:
    """One seeded continuation of each."""
    ids, mask = pad_left([prompt.ids for prompt in prompts], model.config.pad_token_id)
    output = model.generate(
        ids,
        mask,
        max_new_tokens=NEW_TOKENS,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=TOP_P,
        repetition_penalty=1.0,
        do_sample=True,
        seed=seed,
    )
    return [tokenizer.decode(row) for row in output[:, ids.shape[1] :].tolist()]


def rows(prompts: list[Prompt], texts: list[str]) -> list[dict[str, str]]:
    """What runs/NAME/samples.jsonl says of them."""
    return [{"prompt": prompt.text, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
