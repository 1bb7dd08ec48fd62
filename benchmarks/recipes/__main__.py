"""Which recipe for which size and length?

    python -m benchmarks.recipes run law --data DIR --work DIR   train a study's runs, or go on after a kill
    python -m benchmarks.recipes table                          what is known, from results.jsonl
    python -m benchmarks.recipes fit                            the law, into training/planning/expected_loss.json
    python -m benchmarks.recipes draw docs/recipes.svg          the runs and the law as a picture
    python -m benchmarks.recipes predict --parameters 1.3e6 --tokens 26e6
    python -m benchmarks.recipes average --run RUN --data DIR   the loss of the mean of its last 1, 2, ... checkpoints
    python -m benchmarks.recipes dirty --input FILE --output FILE.jsonl.gz   the text of the study "cleaning"
    python -m benchmarks.recipes draws                          how often two halves of equal runs are called different

Every run is one process, so that two studies can share a machine's two cores. Runs that end are added to
`benchmarks/recipes/results.jsonl`, on which the law is fitted; so the study can grow over many sessions and machines.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import inputs
from benchmarks.recipes.averaging import averages
from benchmarks.recipes.dirty_text import write_dirty_text
from benchmarks.recipes.law import Run, fit, tokens_for
from benchmarks.recipes.picture import svg
from benchmarks.recipes.studies import SEQ_LEN, STUDIES, Size, Study
from common.files import read_json_lines
from corpus.shards import Corpus
from experiments.statistics import ALPHA, welch
from experiments.sweep import ENDED, Sweep, SweepSettings
from experiments.sweep_plan import plan_runs
from training.planning.expected_loss import FITTED, FittedLaw
from training.processes.lock import RunLock

RESULTS = Path(__file__).with_name("results.jsonl")
# "hour" is the run of two processes in docs/dev/recipes.md, recorded by hand
FITTED_ON, PREDICTED = ("law", "dense", "validation", "hour", "widest_muon"), ("validation", "hour", "widest_muon")
REPEATS = ("repetition", "greedy_repetition", "loops", "copying")  # of the text that the model writes at the end
CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def run(study: Study, name: str, data: Path, work: Path) -> None:
    """Train what is missing of a study, the small sizes first, and record it."""
    vocabulary = Corpus.open(data, verify="size").manifest.vocab_size
    for size in study.sizes:
        for length in study.tokens_a_parameter:
            steps = study.steps(size, vocabulary, length)
            folder = work / f"{name}-{size.hidden}{'-experts' * size.experts}-{length:g}"
            lock = RunLock(folder)  # held until this process ends
            lock.acquire(print)
            settings = SweepSettings(folder, tuple(_arguments(study, size, steps, data)), processes=1)
            sweep = Sweep(settings, plan_runs(study.values, list(study.seeds)), lambda line: print(line, flush=True))
            sweep.finish()
            shared = {
                "study": name,
                "text": data.name,
                "vocabulary": vocabulary,
                "hidden": size.hidden,
                "experts": size.experts,
                "tokens": steps * study.rows * SEQ_LEN,
            }
            ended = _ended(sweep)
            _record([shared | {"parameters": size.parameters(vocabulary, result["set"])} | result for result in ended])


def _ended(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield what became of each run that has ended; the next call goes on with the others."""
    for planned in sweep.runs:
        found = sweep.figures(planned)
        if found is not None and sweep.state(planned) in ENDED:
            loss = found.bits(found.final) if found.state == "finished" else None
            what = {"set": list(planned.overrides), "seed": planned.seed}
            repeats = {name: (found.record.curve("val", name) or [(0, None)])[-1][1] for name in REPEATS}
            yield what | {"state": found.state, "bits_per_byte": loss} | repeats


def _record(found: list[dict[str, Any]]) -> None:
    """Add the runs that are not recorded yet."""
    known = {_key(result) for result in results()}
    with RESULTS.open("a", encoding="utf-8") as file:
        for result in found:
            if _key(result) not in known:
                file.write(json.dumps(result, ensure_ascii=False) + "\n")


def _arguments(study: Study, size: Size, steps: int, data: Path) -> Iterator[str]:
    """Yield train.py's flags: evaluations of the whole held-out text, checkpoints of the last half."""
    yield from ("--deepspeed_config", str(CONFIGS / study.config), "--data", str(data), "--skip_preflight")
    yield from size.flags(study)
    numbers = {
        "max_seq_len": SEQ_LEN,
        "max_steps": steps,
        "eval_interval": math.ceil(steps / study.evaluations),
        "eval_tokens": 0,
        "log_interval": 100,
        "sample_interval": 1_000_000,
        "save_interval": max(1, steps // 20),
        "keep_last": 10,
    }
    yield from (word for name, value in numbers.items() for word in (f"--{name}", str(value)))
    yield from ("--set", f"train_micro_batch_size_per_gpu={study.rows}", *study.fixed)


def _key(result: dict[str, Any]) -> tuple[object, ...]:
    names = ("study", "text", "vocabulary", "hidden", "experts", "tokens", "seed")
    return (*(result[name] for name in names), *result["set"])


def results() -> list[dict[str, Any]]:
    """Return every run that was recorded."""
    return list(read_json_lines(RESULTS)) if RESULTS.is_file() else []


class Experiment(NamedTuple):
    """What runs that differ in the seed alone have in common; `parameters` are those that a token meets."""

    study: str
    hidden: int
    experts: bool
    parameters: float
    tokens: float
    changed: str


def by_experiment(studies: Sequence[str] = ()) -> dict[Experiment, list[dict[str, Any]]]:
    """Return the recorded runs of some studies, or of all, those that differ in the seed alone together."""
    seeds: defaultdict[Experiment, list[dict[str, Any]]] = defaultdict(list)
    for result in results():
        if not studies or result["study"] in studies:
            shape = (result[name] for name in ("study", "hidden", "experts", "parameters", "tokens"))
            seeds[Experiment(*shape, " ".join(result["set"]))].append(result)
    return seeds


def runs(*studies: str) -> list[Run]:
    """Return the experiments of some studies with the mean loss of the seeds that ended well."""
    found = []
    for experiment, results_of_seeds in by_experiment(studies).items():
        if losses := [result["bits_per_byte"] for result in results_of_seeds if result["bits_per_byte"]]:
            found.append(Run(experiment.parameters, experiment.tokens, statistics.mean(losses)))
    return found


def fitted() -> FittedLaw:
    """Return the law of dense models with the shipped recipe, with what AdamW needs by it."""
    law = fit(runs(*FITTED_ON))
    expected = law.forms[0].law()
    lengths = [
        run.tokens / tokens_for(expected, run.parameters, run.loss)
        for run in runs("adamw", "wide_adamw", "widest_adamw")
    ]
    return law.model_copy(update={"adamw_tokens": round(min(lengths), 2)})


def table() -> Iterator[str]:
    """Yield a line for each experiment, and the law if there are runs enough to fit it."""
    yield "| study | hidden | M parameters | M tokens | set | bits a byte | standard deviation | greedy loops |"
    yield "|---|---|---|---|---|---|---|---|"
    for experiment, found in by_experiment().items():
        losses = [result["bits_per_byte"] or math.nan for result in found]
        loops = [result["loops"] for result in found if result.get("loops") is not None]
        spread = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        looping = f"{statistics.mean(loops):.0%}" if loops else ""
        shape = f"{experiment.hidden}{' experts' * experiment.experts}"
        size = f"{experiment.parameters / 1e6:.2f} | {experiment.tokens / 1e6:.1f} | {experiment.changed}"
        mean = statistics.mean(losses)
        yield f"| {experiment.study} | {shape} | {size} | {mean:.4f} | {spread} | {looping} |"
    try:
        both = fit(runs(*FITTED_ON))
    except ValueError as why:
        yield f"no law yet: {why}"
        return
    law, other = (form.law() for form in both.forms)
    root = 1 / law.token_exponent
    yield (
        f"L = {law.floor:.3f} + ({law.size_factor**root:.3f} / N^{law.size_exponent * root:.3f} + "
        f"{law.token_factor**root:.3f} / D)^{law.token_exponent:.3f}"
    )
    yield (
        f"L = {other.floor:.3f} + {other.size_factor:.3f} / N^{other.size_exponent:.3f} + "
        f"{other.token_factor:.3f} / D^{other.token_exponent:.3f}, N and D in millions"
    )


def called_different(losses: Sequence[float], seeds: int, draws: int = 1000) -> float:
    """Return the share of draws in which two groups of `seeds` runs of one recipe differ by compare.py's test."""
    rng, found = random.Random(0), 0
    for _ in range(draws):
        drawn = rng.sample(list(losses), 2 * seeds)
        test = welch(drawn[:seeds], drawn[seeds:])
        found += test is not None and test.p < ALPHA
    return found / draws


def main(argv: Sequence[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    train = kinds.add_parser("run")
    train.add_argument("study", choices=STUDIES)
    train.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder made by prepare.py")
    train.add_argument("--work", type=Path, required=True, metavar="DIR")
    train.add_argument("--sizes", type=int, nargs="+", metavar="HIDDEN", help="only these of the study's sizes")
    train.add_argument("--lengths", type=float, nargs="+", metavar="N", help="only these of its tokens a parameter")
    mean = kinds.add_parser("average")
    mean.add_argument("--run", type=Path, required=True, metavar="DIR", help="of one process, with --keep_last many")
    mean.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder made by prepare.py")
    mean.add_argument("--most", type=int, default=10, metavar="N", help="checkpoints (%(default)s)")
    dirty = kinds.add_parser("dirty")
    dirty.add_argument("--input", type=inputs.file, required=True, metavar="FILE", help=".jsonl[.gz|.zst]")
    dirty.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl.gz")
    kinds.add_parser("table")
    kinds.add_parser("draws")
    kinds.add_parser("fit")
    kinds.add_parser("draw").add_argument("picture", type=Path, metavar="FILE.svg")
    expected = kinds.add_parser("predict")
    expected.add_argument("--parameters", type=float, required=True, help="that a token meets")
    expected.add_argument("--tokens", type=float, required=True)
    args = parser.parse_args(argv)
    if args.what == "run":
        study = STUDIES[args.study]
        try:
            inputs.prepared(str(args.data))
        except argparse.ArgumentTypeError as error:
            parser.error(f"--data: {error}")
        sizes = [size for size in study.sizes if not args.sizes or size.hidden in args.sizes]
        lengths = [length for length in study.tokens_a_parameter if not args.lengths or length in args.lengths]
        run(replace(study, sizes=sizes, tokens_a_parameter=lengths), args.study, args.data, args.work)
    elif args.what == "average":
        for count, loss in averages(args.run, args.data, SEQ_LEN, args.most):
            print(f"{count:2d} checkpoints {loss:.4f}", flush=True)
    elif args.what == "dirty":
        write_dirty_text(args.input, args.output)
    elif args.what == "table":
        print("\n".join(table()))
    elif args.what == "draws":
        losses = [result["bits_per_byte"] for result in results() if result["study"] == "equal"]
        for seeds in (2, 3, 5):
            share = called_different(losses, seeds)
            print(
                f"{seeds} seeds against {seeds}: called different in {share:.1%} of 1,000 draws of {len(losses)} runs"
            )
    elif args.what == "fit":
        FITTED.write_text(fitted().model_dump_json(indent=1) + "\n", encoding="utf-8")
    elif args.what == "draw":
        args.picture.write_text(svg(FittedLaw.load(), runs(*FITTED_ON), runs(*PREDICTED)), encoding="utf-8")
    else:
        found = fit(runs(*FITTED_ON)).expect(args.parameters, args.tokens)
        print(f"{found.loss:.4f} bits a byte, ± {found.margin:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
