"""Which mistake gives the reference run's figures (8.92 -> 7.42 nats, text that repeats), and what fixes it?

    python -m benchmarks.reference_run --data documents.jsonl.gz --output runs/reference

The reference run's recipe (docs/dev/reference-run.md) at a size for one CPU core: its 6,400 entries, experts, AdamW,
linear warm-up, cosine to a tenth, clipping at 1, and one mistake a run, all for the same number of steps on the same
text. The learning rate is higher than its 2e-4, since some hundred steps stand for its 11,040. Plain PyTorch on our
network, without DeepSpeed, so that every mistake is a line of this file. Results: the table on the terminal, and
reference_run.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from corpus.shards import Corpus
from evaluation.held_out_prompts import HeldOutPrompts, select_prompts
from evaluation.repetition import measure_repetition
from evaluation.rows import evaluation_rows
from model import CausalLM, ModelConfig, pad_left, until_eos
from model.init import init_weights
from model.moe import LocalMoE
from training.data_sampler import SampleStream, tensors

VOCABULARY, SEQ_LEN, ROWS = 6_400, 96, 8
HELD_OUT_TOKENS, PROMPTS, NEW_TOKENS = 6_000, 24, 48
LOSS_SCALE, REFERENCE_WEIGHTS = 2**16, 45e6


@dataclass(frozen=True)
class Recipe:
    """One training. `spoil` changes the gradients before the optimizer's step, `targets` the batch's targets."""

    name: str
    rate: float = 2e-3
    steps: int = 300
    warmup: float = 0.02  # share of the steps, as 500 of 27,600 are
    clip: float = 1.0
    dtype: torch.dtype = torch.float32
    balance: float = 0.01
    start: Callable[[CausalLM], None] | None = None
    spoil: Callable[[CausalLM], None] | None = None
    targets: Callable[[Tensor], tuple[Tensor, Tensor]] = field(default=lambda ids: (ids[:, :-1], ids[:, 1:]))
    trained: Callable[[str], bool] = field(default=lambda name: True)

    def rate_at(self, step: int) -> float:
        """Linear up, cosine down to a tenth."""
        up = max(1, round(self.warmup * self.steps))
        if step < up:
            return self.rate * step / up
        return self.rate * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - up) / max(1, self.steps - up))))


def torch_start(model: CausalLM) -> None:
    """What the network's layers would begin with had nobody initialised them: PyTorch's own, the head a Linear's."""
    for parameter in model.parameters():
        if parameter.ndim == 2:  # the embedding is tied to the head, and the head's start is the one that stays
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


def clipped_scaled(model: CausalLM) -> None:
    """Clipping at 1 before the loss scale was divided out: the norm becomes 1 / 65,536, near AdamW's eps for a weight.

    What eps does depends on the size of one weight's gradient, so the norm is that of as many weights
    as the reference run's.
    """
    weights = sum(p.numel() for p in model.parameters())
    _rescale(model, (weights / REFERENCE_WEIGHTS) ** 0.5 / LOSS_SCALE)


def unscaled_twice(model: CausalLM) -> None:
    """The loss scale divided out twice."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= LOSS_SCALE


def _rescale(model: CausalLM, norm: float) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = torch.linalg.vector_norm(torch.stack([g.float().norm() for g in gradients]))
    for gradient in gradients:
        gradient.mul_(norm / total)


def shuffled(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of another row: inputs and targets do not belong together."""
    return ids[:, :-1], ids.roll(1, 0)[:, 1:]


HEALTHY = Recipe("healthy")
MISTAKES = (
    replace(HEALTHY, name="PyTorch's own start", start=torch_start),
    replace(HEALTHY, name="rate / 10", rate=HEALTHY.rate / 10),
    replace(HEALTHY, name="PyTorch's own start, rate / 15", start=torch_start, rate=HEALTHY.rate / 15),
    replace(HEALTHY, name="rate / 30", rate=HEALTHY.rate / 30),
    replace(HEALTHY, name="rate / 100", rate=HEALTHY.rate / 100),
    replace(HEALTHY, name="rate x 100", rate=HEALTHY.rate * 100),
    replace(HEALTHY, name="rate x 100, no warm-up", rate=HEALTHY.rate * 100, warmup=0),
    replace(HEALTHY, name="weights and AdamW in bf16", dtype=torch.bfloat16),
    replace(HEALTHY, name="the same at rate / 10", dtype=torch.bfloat16, rate=HEALTHY.rate / 10),
    replace(HEALTHY, name="clipped before unscaling", spoil=clipped_scaled, clip=0),
    replace(HEALTHY, name="unscaled twice", spoil=unscaled_twice),
    replace(HEALTHY, name="targets shifted by two", targets=lambda ids: (ids[:, :-2], ids[:, 2:])),
    replace(HEALTHY, name="targets of another row", targets=shuffled),
    replace(HEALTHY, name="balance loss x 1,000", balance=10.0),
    replace(HEALTHY, name="embedding and head not trained", trained=lambda name: "embed" not in name),
    replace(HEALTHY, name="norms alone trained", trained=lambda name: "norm" in name),
)


def fixes(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return what the reference run's author proposes, one change a recipe."""
    return (
        replace(recipe, name=f"{recipe.name}; epochs x 2.5", steps=recipe.steps * 5 // 2),
        replace(recipe, name=f"{recipe.name}; warm-up x 4", warmup=recipe.warmup * 4),
        replace(recipe, name=f"{recipe.name}; rate / 2", rate=recipe.rate / 2),
    )


# temperature, top_k, top_p, repetition penalty; temperature 0 is greedy
SAMPLING = {
    "greedy": (0.0, 0, 1.0, 1.0),
    "as the model believes": (1.0, 0, 1.0, 1.0),
    "0.7": (0.7, 0, 1.0, 1.0),
    "top-k 50, top-p 0.95": (1.0, 50, 0.95, 1.0),
    "the same, penalty 1.2": (1.0, 50, 0.95, 1.2),
}


@dataclass(frozen=True)
class Result:
    """Held-out losses in nats by step; figures of the written text by way of sampling."""

    name: str
    steps: int
    curve: list[tuple[int, float]]
    written: dict[str, dict[str, Any]]
    sample: str


class Lab:
    """The corpus and the model's sizes that all recipes share."""

    def __init__(self, corpus: Corpus, hidden: int, layers: int, seed: int) -> None:
        manifest = corpus.manifest
        self.corpus, self.seed = corpus, seed
        self.config = ModelConfig(
            vocab_size=manifest.vocab_size,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            moe_intermediate_size=hidden * 11 // 8,
            bos_token_id=manifest.bos_id,
            eos_token_id=manifest.eos_id,
            pad_token_id=manifest.pad_id,
        )
        self.train, self.val = corpus.split("train"), corpus.split("val")
        self.val_rows = evaluation_rows(self.val.num_rows(SEQ_LEN), HELD_OUT_TOKENS, SEQ_LEN)
        self.held_out = select_prompts(
            self.val, bos_id=manifest.bos_id, eos_id=manifest.eos_id, count=PROMPTS, new_tokens=NEW_TOKENS
        )

    def run(self, recipe: Recipe) -> tuple[Result, CausalLM]:
        """Train by the recipe; the loss is always that of the next token, on held-out text."""
        model = self._fresh(recipe)
        optimizer = torch.optim.AdamW(
            [p for n, p in model.named_parameters() if recipe.trained(n)],
            lr=recipe.rate,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.01,
        )
        routers = Routers(model)
        order = SampleStream(self.train.num_rows(SEQ_LEN), self.seed)
        curve = [(0, self.loss(model))]
        for step in range(recipe.steps):
            rows = [order[i] for i in range(step * ROWS, (step + 1) * ROWS)]
            ids = torch.from_numpy(self.train.batch(rows, SEQ_LEN))
            routers.forget()  # the passes of an evaluation
            losses = model(*recipe.targets(ids))
            (losses.total + recipe.balance * routers.balance()).backward()
            self._step(model, optimizer, recipe, step)
            if (step + 1) % max(1, recipe.steps // 6) == 0 or step + 1 == recipe.steps:
                curve.append((step + 1, self.loss(model)))
        routers.close()
        written, sample = self.written(model)
        return Result(recipe.name, recipe.steps, curve, written, sample), model

    def _fresh(self, recipe: Recipe) -> CausalLM:
        torch.manual_seed(self.seed)
        model = CausalLM(self.config)
        init_weights(model, self.config, self.seed)
        if recipe.start:
            recipe.start(model)
        return model.to(recipe.dtype)

    def _step(self, model: CausalLM, optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
        if recipe.spoil:
            recipe.spoil(model)
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        optimizer.step()
        model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def loss(self, model: CausalLM) -> float:
        """Nats a token on the held-out rows."""
        total = tokens = 0.0
        for first in range(0, len(self.val_rows), ROWS):
            ids, targets = tensors(self.val, self.val_rows[first : first + ROWS], SEQ_LEN, torch.device("cpu"))
            total += model.loss_sum(ids, targets).item()
            tokens += targets.numel()
        return total / tokens

    def written(self, model: CausalLM) -> tuple[dict[str, dict[str, Any]], str]:
        """Figures for each way of sampling, and a greedy continuation of the first prompt."""
        figures, sample = {}, ""
        for name, settings in SAMPLING.items():
            try:
                outputs = write(model, self.held_out, settings)
            except Exception as error:  # of a model that is not finite
                figures[name] = {"error": str(error)}
                continue
            figures[name] = asdict(measure_repetition(self.held_out.prompts, outputs))
            sample = sample or json.dumps(outputs[0][:24])
        return figures, sample


class Routers:
    """The load-balancing loss of LocalMoE's routers, 1 at perfect balance (Switch transformer, first choices)."""

    def __init__(self, model: CausalLM) -> None:
        self._scores: list[Tensor] = []
        # on the layer, whose input is the router's: LocalMoE takes the gate's weight and never calls the gate
        self._hooks = [
            module.register_forward_pre_hook(self._seen) for module in model.modules() if isinstance(module, LocalMoE)
        ]

    def _seen(self, layer: LocalMoE, args: tuple[Tensor, ...]) -> None:
        x_SH = args[0].reshape(-1, args[0].shape[-1]).float()
        self._scores.append(nn.functional.linear(x_SH, layer.gate.weight.float()))

    def balance(self) -> Tensor:
        """Mean over the layers of the latest pass; RuntimeError if none was seen."""
        losses = []
        if len(self._scores) != len(self._hooks):
            raise RuntimeError(f"{len(self._scores)} of {len(self._hooks)} routers were seen")
        for scores_SE in self._scores:
            p_SE = scores_SE.softmax(-1)
            chosen_E = torch.bincount(p_SE.argmax(-1), minlength=p_SE.shape[1]) / len(p_SE)
            losses.append((chosen_E * p_SE.mean(0)).sum() * p_SE.shape[1])
        self._scores.clear()
        return torch.stack(losses).mean()

    def forget(self) -> None:
        """What was seen so far."""
        self._scores.clear()

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()


def write(model: CausalLM, held_out: HeldOutPrompts, settings: tuple[float, int, float, float]) -> list[list[int]]:
    """The prompts continued."""
    temperature, top_k, top_p, penalty = settings
    ids, mask = pad_left(held_out.prompts, model.config.pad_token_id)
    output = model.generate(
        ids,
        mask,
        max_new_tokens=held_out.new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=penalty,
        seed=0,
    )
    return [until_eos(row, model.config.eos_token_id)[0] for row in output[:, ids.shape[1] :].tolist()]


def line(result: Result) -> str:
    """A row of the table."""

    def share(how: str, what: str) -> str:
        value = result.written[how].get(what)
        return "-" if value is None else f"{100 * value:.0f} %"

    ways = [
        share("as the model believes", "repetition"),
        share("greedy", "repetition"),
        share("greedy", "loops"),
        share("the same, penalty 1.2", "repetition"),
    ]
    return (
        f"| {result.name} | {result.steps} | {result.curve[0][1]:.2f} | {result.curve[-1][1]:.2f} | "
        + " | ".join(ways)
        + " |"
    )


HEADER = (
    "| mistake | steps | start | end | 4-grams repeated, T = 1 | greedy | greedy loops | top-k 50, top-p 0.95, "
    "penalty 1.2 |\n|---|---|---|---|---|---|---|---|"
)


def main(argv: list[str] | None = None) -> int:
    """Train all, print as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="documents, .jsonl[.gz]")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=HEALTHY.steps)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="recipes whose name begins so")
    parser.add_argument(
        "--fix",
        nargs="+",
        default=["healthy", "PyTorch's own start, rate / 15"],
        metavar="NAME",
        help="recipes to try the proposed fixes on",
    )
    options = parser.parse_args(argv)
    prepare(
        options.data,
        options.output / "corpus",
        PreparationSettings(vocab_size=VOCABULARY, val_fraction=0.01),
        workers=1,
        progress=None,
    )
    corpus = Corpus.open(options.output / "corpus")
    lab = Lab(corpus, options.hidden, options.layers, options.seed)
    recipes = [replace(recipe, steps=options.steps) for recipe in (HEALTHY, *MISTAKES)]
    recipes += [fix for recipe in recipes if recipe.name in options.fix for fix in fixes(recipe)]
    recipes = [r for r in recipes if not options.only or r.name.startswith(tuple(options.only))]
    print(f"n-gram baselines: {corpus.manifest.ngram_baselines}")
    print(f"true text: {measure_repetition(lab.held_out.prompts, lab.held_out.continuations)}\n{HEADER}")
    results = []
    for recipe in recipes:
        results.append(lab.run(recipe)[0])
        print(line(results[-1]), flush=True)
        (options.output / "reference_run.json").write_text(json.dumps([asdict(r) for r in results], indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
