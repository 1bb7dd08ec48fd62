"""What the model writes while it trains: repetition figures on held-out prompts, and samples for people to read."""

from __future__ import annotations

import time
from typing import Any

import torch
from tokenizers import Tokenizer

from corpus.shards import MaskedStream, TokenStream
from evaluation.held_out_prompts import (
    GREEDY,
    SAMPLED,
    HeldOutPrompts,
    generate_continuations,
    make_generator,
    measure_answers,
    select_prompts,
    select_questions,
)
from evaluation.repetition import RepetitionMetrics, measure_repetition
from model import CausalLM, GenerationError, ModelConfig, pad_left
from training.checkpointing.export import inference_model
from training.engine.protocol import Engine
from training.processes.process_group import World, gather_from_ranks

# The time of a pass grows with its tokens and hardly with its prompts
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 32, 40
MODES = {"sampled": SAMPLED, "greedy": GREEDY}

SAMPLES, SAMPLE_PROMPT_TOKENS, SAMPLE_NEW_TOKENS = 3, 12, 60
SAMPLED_TOKENS = 2049  # of validation text that the first documents are looked for in
TEMPERATURE, TOP_P = 0.8, 0.95


class RepetitionEvaluator:
    """Measures repetition on the same prompts at every evaluation. Every rank holds one; calls are collective."""

    def __init__(self, stream: TokenStream, config: ModelConfig, *, seq_len: int, seed: int, world: World) -> None:
        self.config, self.seed, self.world = config, seed, world
        if isinstance(stream, MaskedStream):
            self.answers, self.held_out = True, _questions(stream, seq_len)
        else:
            self.answers, self.held_out = False, _beginnings(stream, config, seq_len)
        self.truth = measure_repetition(self.held_out.prompts, self.held_out.continuations)

    def figures(self, engine: Engine) -> tuple[dict[str, Any], str | None]:
        """Return what goes into metrics.jsonl, and what stood in the way if nothing does.

        Each rank writes one of the two sets of texts, or rank 0 both; the random numbers of training stay untouched.
        """
        if not self.held_out.prompts:
            return {}, None
        started = time.perf_counter()
        model = inference_model(engine, self.config)
        modes = list(MODES)[self.world.rank :: self.world.size]
        mine: dict[str, Any] = {mode: self._measured(model, mode) for mode in modes}
        found = {mode: result for part in gather_from_ranks(mine) for mode, result in part.items()}
        problems = [result for result in found.values() if isinstance(result, str)]
        if problems:
            return {}, problems[0]
        (sampled, _), (greedy, answers), truth = found["sampled"], found["greedy"], self.truth
        return {
            "repetition": sampled.repetition,
            "true_repetition": truth.repetition,
            "copying": sampled.copying,
            "true_copying": truth.copying,
            "distinct_2": sampled.distinct_2,
            "true_distinct_2": truth.distinct_2,
            "greedy_repetition": greedy.repetition,
            "loops": greedy.loops,
            "true_loops": truth.loops,
            "probe_seconds": round(time.perf_counter() - started, 3),
            **answers,
        }, None

    def _measured(self, model: CausalLM, mode: str) -> tuple[RepetitionMetrics, dict[str, float]] | str:
        """Return the figures of one way to decode, or what stood in the way: no reason to lose a run.

        With conversations those of answers come along.
        """
        try:
            outputs = generate_continuations(
                make_generator(model, MODES[mode]),
                self.held_out,
                eos_id=self.config.eos_token_id,
                seed=self.seed,
                batch_size=PROMPTS,
            )
        except GenerationError as error:
            return str(error)
        except torch.OutOfMemoryError:
            return "there is not enough memory beside the training"
        truths, limit = self.held_out.continuations, self.held_out.new_tokens
        answers = measure_answers(outputs, truths, limit) if self.answers else {}
        return measure_repetition(self.held_out.prompts, outputs), answers


def _beginnings(stream: TokenStream, config: ModelConfig, seq_len: int) -> HeldOutPrompts:
    """Return the beginnings of validation texts, not beyond the positions that the model is trained on."""
    prompt_tokens = max(2, min(PROMPT_TOKENS, seq_len // 4))
    return select_prompts(
        stream,
        bos_id=config.bos_token_id,
        eos_id=config.eos_token_id,
        count=PROMPTS,
        prompt_tokens=prompt_tokens,
        new_tokens=max(1, min(NEW_TOKENS, seq_len - prompt_tokens)),
    )


def _questions(stream: MaskedStream, seq_len: int, count: int = PROMPTS) -> HeldOutPrompts:
    new_tokens = max(1, min(NEW_TOKENS, seq_len // 2))
    return select_questions(stream, most_tokens=seq_len - new_tokens, count=count, new_tokens=new_tokens)


class SampleWriter:
    """Continues the beginnings of the first few validation documents, or answers a few questions of validation."""

    def __init__(
        self, stream: TokenStream, tokenizer: Tokenizer, config: ModelConfig, *, seq_len: int, seed: int
    ) -> None:
        self.tokenizer, self.config, self.seed = tokenizer, config, seed
        questions = _questions(stream, seq_len, SAMPLES) if isinstance(stream, MaskedStream) else None
        self.prompts = questions.prompts if questions else _document_starts(stream, config)

    def write(self, engine: Engine) -> list[dict[str, str]]:
        """Return the lines of samples.jsonl on rank 0, none on the others; collective.

        GenerationError, on rank 0 alone, if the model's output is not finite.
        """
        model = inference_model(engine, self.config)  # experts may be on other ranks
        if engine.global_rank or not self.prompts:
            return []
        ids, mask = pad_left(self.prompts, self.config.pad_token_id)
        output = model.generate(
            ids,
            mask,
            max_new_tokens=SAMPLE_NEW_TOKENS,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=TOP_P,
            repetition_penalty=1.0,
            do_sample=True,
            seed=self.seed,
        )
        texts = output[:, ids.shape[1] :].tolist()
        return [
            {"prompt": self.tokenizer.decode(prompt), "text": self.tokenizer.decode(text)}
            for prompt, text in zip(self.prompts, texts, strict=True)
        ]


def _document_starts(stream: TokenStream, config: ModelConfig) -> list[list[int]]:
    """Return the first tokens of the first few documents; of a short document its first half."""
    ids = stream.read(0, SAMPLED_TOKENS).tolist()
    boundary = (config.eos_token_id, config.bos_token_id)
    starts = [0, *(i for i in range(1, len(ids)) if (ids[i - 1], ids[i]) == boundary)]
    documents = (ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True))
    prompts = [
        document[: min(SAMPLE_PROMPT_TOKENS, max(2, len(document) // 2))] for document in documents if len(document) > 2
    ]
    return prompts[:SAMPLES]
