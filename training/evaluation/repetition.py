"""Repetition while a model trains: held-out prompts, what it makes of them, and the true continuations beside it."""

from __future__ import annotations

import time
from typing import Any

import torch

from corpus.shards import TokenStream
from evaluation.held_out_prompts import GREEDY, SAMPLED, generate_continuations, make_generator, select_prompts
from evaluation.repetition import RepetitionMetrics, measure_repetition
from model import CausalLM, GenerationError, ModelConfig
from training.checkpointing.export import inference_model
from training.engine.protocol import Engine
from training.processes.process_group import World, gather_from_ranks

# The time of a pass grows with its tokens and hardly with its prompts
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 32, 40
MODES = ("sampled", "greedy")


class RepetitionEvaluator:
    """The same prompts at every evaluation. Every rank holds one, and the calls are collective."""

    def __init__(self, stream: TokenStream, config: ModelConfig, *, seq_len: int, seed: int, world: World) -> None:
        self.config, self.seed, self.world = config, seed, world
        # not beyond the positions that the model is trained on
        prompt_tokens = max(2, min(PROMPT_TOKENS, seq_len // 4))
        self.held_out = select_prompts(
            stream,
            bos_id=config.bos_token_id,
            eos_id=config.eos_token_id,
            count=PROMPTS,
            prompt_tokens=prompt_tokens,
            new_tokens=max(1, min(NEW_TOKENS, seq_len - prompt_tokens)),
        )
        self.truth = measure_repetition(self.held_out.prompts, self.held_out.continuations)

    def figures(self, engine: Engine) -> tuple[dict[str, Any], str | None]:
        """What goes into metrics.jsonl, and why there is none if there is none.

        Each rank writes one of the two sets of texts, or rank 0 both; the random numbers of training stay untouched.
        """
        if not self.held_out.prompts:
            return {}, None
        started = time.perf_counter()
        model = inference_model(engine, self.config)
        mine: dict[str, Any] = {mode: self._measured(model, mode) for mode in MODES[self.world.rank :: self.world.size]}
        found = {mode: result for part in gather_from_ranks(mine) for mode, result in part.items()}
        problems = [result for result in found.values() if isinstance(result, str)]
        if problems:
            return {}, problems[0]
        return named(found["sampled"], found["greedy"], self.truth) | {
            "probe_seconds": round(time.perf_counter() - started, 3)
        }, None

    def _measured(self, model: CausalLM, mode: str) -> RepetitionMetrics | str:
        """The figures of one way to decode, or what stood in the way: no reason to lose a run."""
        try:
            outputs = generate_continuations(
                make_generator(model, GREEDY if mode == "greedy" else SAMPLED),
                self.held_out,
                eos_id=self.config.eos_token_id,
                seed=self.seed,
                batch_size=PROMPTS,
            )
        except GenerationError as error:
            return str(error)
        except torch.OutOfMemoryError:
            return "there is not enough memory beside the training"
        return measure_repetition(self.held_out.prompts, outputs)


def named(sampled: RepetitionMetrics, greedy: RepetitionMetrics, truth: RepetitionMetrics) -> dict[str, float | None]:
    """The figures under their names in metrics.jsonl."""
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
    }
