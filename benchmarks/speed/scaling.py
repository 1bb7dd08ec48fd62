"""Processes, ZeRO stages, expert parallelism and accumulation: time a step, memory, bytes sent, beside the ideal.

Every line is real runs of `deepspeed --num_gpus N train.py` on CPU with the same global batch, one thread a process
unless it says otherwise. The base and two processes run in turn, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import inputs
from benchmarks.inputs import Skip
from benchmarks.speed.scaling_child import FOLDER
from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from corpus.tokenizer import load_tokenizer
from model import ModelConfig, count_parameters
from sample_stories import write_sample_corpus
from stress.chaos.session import ROOT, Session, free_port
from training.config.command_line import positive

NAME = "scaling"
AIM = 0.9
"""Of linear, two processes on two cores."""
STORIES, VOCABULARY = 12_000, 2_000
SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 832,
    "intermediate_size": 832,
    "max_seq_len": 512,
}
SKIPPED = 2  # first steps, which build buffers and kernels
PATIENCE = 240.0  # seconds for one run
RING = {"all_reduce": 2.0, "all_reduce_coalesced": 2.0}
"""Times (n - 1) / n of its payload that a rank sends in a ring; 1 for the others."""


@dataclass(frozen=True)
class Case:
    """One kind of run. `batch` rows of the whole step, whatever the processes; `threads` of each process."""

    group: str
    processes: int = 2
    threads: int = 1
    ep_size: int = 1
    stage: int = 2
    accumulation: int = 1
    batch: int = 16

    @property
    def title(self) -> str:
        """What differs from the others of its group."""
        many = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        threads = f" x {self.threads} threads" if self.threads > 1 else ""
        return {
            "processes": many + threads,
            "experts": f"ep_size {self.ep_size}",
            "ZeRO": f"ZeRO-{self.stage}",
            "accumulation": f"accumulation {self.accumulation}, ZeRO-{self.stage}",
        }[self.group]

    def flags(self, config: Path, data: Path, run: Path, steps: int) -> list[object]:
        """Return the flags of train.py."""
        micro = self.batch // self.processes // self.accumulation
        sizes = [word for name, value in (SIZES | {"ep_size": self.ep_size}).items() for word in (f"--{name}", value)]
        # as many rows for every rank: with one expert a token and ep_size 2, other numbers end in a crash
        quiet = {
            "eval_interval": 10**6,
            "eval_tokens": 8 * SIZES["max_seq_len"],
            "sample_interval": 10**6,
            "save_interval": 10**6,
            "max_steps": steps,
            "log_interval": 1,
        }
        return [
            "--deepspeed_config",
            config,
            "--data",
            data,
            "--output",
            run,
            "--skip_preflight",
            *sizes,
            *(word for name, value in quiet.items() for word in (f"--{name}", value)),
            "--set",
            f"train_batch_size={self.batch}",
            f"train_micro_batch_size_per_gpu={micro}",
            f"gradient_accumulation_steps={self.accumulation}",
            f"zero_optimization.stage={self.stage}",
            "tensorboard=null",
        ]


BASE, TWO = Case("processes", processes=1), Case("processes")
CASES = [
    BASE,
    TWO,
    Case("processes", processes=1, threads=2),
    Case("processes", processes=4),
    Case("experts", ep_size=2),
    Case("ZeRO", stage=0),
    Case("ZeRO", stage=1),
    Case("ZeRO", stage=3),
    *(
        Case("accumulation", accumulation=count, stage=stage, batch=32)
        for count, stage in ((1, 2), (4, 2), (16, 2), (16, 1))
    ),
]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Its own flags."""
    add = parser.add_argument
    add("--scaling_data", type=inputs.prepared, metavar="DIR", help="a prepared corpus (sample stories)")
    add(
        "--scaling_config",
        type=inputs.file,
        default=ROOT / "ds_configs" / "cpu_x2.json",
        metavar="FILE",
        help="the experiment (ds_configs/cpu_x2.json)",
    )
    add(
        "--scaling_steps",
        type=positive,
        default=8,
        metavar="N",
        help=f"of a run, of which {SKIPPED} do not count; 3 less with accumulation, whose steps are longer "
        "(%(default)s)",
    )
    add(
        "--scaling_rounds",
        type=positive,
        default=2,
        metavar="N",
        help="times that one and two processes are run in turn (%(default)s)",
    )
    groups = list(dict.fromkeys(case.group for case in CASES))
    add(
        "--scaling_groups",
        nargs="+",
        choices=groups,
        default=groups,
        metavar="GROUP",
        help=f"of {', '.join(groups)} (all)",
    )


def measure(work: Path, flags: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Every figure of every case, and the share of linear speed-up that two processes reach."""
    if not Path("/proc/self/status").exists():
        raise Skip("the scaling part ends its processes with Linux's /proc: run it on Linux")
    begun, work = time.perf_counter(), work.resolve() / NAME
    data = flags.scaling_data or corpus(work)
    chosen = [case for case in CASES if case.group in flags.scaling_groups]
    order = [case for _ in range(flags.scaling_rounds - 1) for case in (BASE, TWO) if case in chosen] + chosen
    found: dict[Case, list[dict[str, Any]]] = defaultdict(list)
    for number, case in enumerate(order, 1):
        say(f"scaling {number}/{len(order)}: {case.group}, {case.title} ({_left(begun, number - 1, len(order))})")
        found[case].append(_run(case, flags, data, work))
    lines = [
        {
            "group": case.group,
            "title": case.title,
            "processes": case.processes,
            "threads": case.threads,
            "batch": case.batch,
            **summary(case, runs),
        }
        for case, runs in found.items()
    ]
    precision = next((run["precision"] for runs in found.values() for run in runs if "precision" in run), "unknown")
    total = _parameters(data)
    return {
        "parameters": total,
        "precision": precision,
        "ideal_sent": ideal_sent(total, 2 if precision in ("bf16", "fp16") else 4, 2),
        "cores": len(os.sched_getaffinity(0)),
        "sizes": SIZES,
        "config": flags.scaling_config.name,
        "steps": flags.scaling_steps,
        "skipped_steps": SKIPPED,
        "rounds": flags.scaling_rounds,
        "lines": lines,
        "efficiency": efficiency(lines),
        "aim": AIM,
        "seconds": time.perf_counter() - begun,
    }


def _parameters(data: Path) -> int:
    shape: dict[str, Any] = {name: value for name, value in SIZES.items() if name != "max_seq_len"}
    tokenizer = load_tokenizer(data / "tokenizer.json")
    return count_parameters(ModelConfig(vocab_size=tokenizer.get_vocab_size(), **shape))[0]


def _precision(run: Path) -> str:
    resolved = json.loads((run / "ds_config.json").read_text(encoding="utf-8"))
    return next((name for name in ("bf16", "fp16") if resolved.get(name, {}).get("enabled")), "fp32")


def _left(begun: float, done: int, total: int) -> str:
    if not done:
        return f"{total} runs, half a minute to a minute each"
    return f"about {(time.perf_counter() - begun) / done * (total - done) / 60:.0f} min left"


def corpus(work: Path) -> Path:
    """Sample stories, prepared once in `work`."""
    folder = work / "corpus"
    if not (folder / "manifest.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        write_sample_corpus(work / "stories.jsonl", STORIES, hamlet=True)
        prepare([work / "stories.jsonl"], folder, PreparationSettings(vocab_size=VOCABULARY), progress=None)
    return folder


def _run(case: Case, flags: argparse.Namespace, data: Path, work: Path) -> dict[str, Any]:
    """One run: what its ranks noted, or the sentence with which it was refused."""
    run, counts = work / "run", work / "counts"
    for folder in (run, counts):
        shutil.rmtree(folder, ignore_errors=True)
    counts.mkdir(parents=True)
    steps = max(SKIPPED + 1, flags.scaling_steps - (3 if case.group == "accumulation" else 0))
    words = case.flags(flags.scaling_config, data, run, steps)
    with Session(
        words,
        folder=work,
        log=work / "logs" / f"{case.group}-{case.title}.log".replace(" ", "-"),
        port=free_port(),
        processes=case.processes,
        script=("--module", "benchmarks.speed.scaling_child"),
        environment={"OMP_NUM_THREADS": str(case.threads), FOLDER: str(counts)},
    ) as session:
        status = session.wait_end(PATIENCE)
        said = session.said
    if status != 0:
        return {"refused": refusal(said, status)}
    ranks = [json.loads((counts / f"rank{rank}.json").read_text()) for rank in range(case.processes)]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "ranks": ranks,
        "precision": _precision(run),
        "tokens_per_second": [row["tokens_per_second"] for row in rows if row["split"] == "train"],
    }


def refusal(said: Sequence[str], status: int | None) -> str:
    """The sentence that a run ended with."""
    if status is None:
        return f"still running after {PATIENCE:.0f} s"
    problems = [line.strip() for line in said if line.lstrip().startswith("1. ")]
    told = [line.strip() for line in said if line.startswith("train.py")]
    last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
    return problems[0].removeprefix("1. ") if problems else (told or [last])[0]


def summary(case: Case, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of a case's runs: medians over the steps that count; memory of the largest process."""
    if refused := [run["refused"] for run in runs if "refused" in run]:
        return {"refused": refused[0]}
    tokens = case.batch * SIZES["max_seq_len"]
    speeds = [speed for run in runs for speed in run["tokens_per_second"][SKIPPED:]]
    ranks = [rank for run in runs for rank in run["ranks"]]
    steps = [step for rank in ranks for step in rank["steps"][SKIPPED:]]
    payload = runs[-1]["ranks"][0]["steps"][-1]["bytes"]
    return {
        "milliseconds": 1e3 * tokens / statistics.median(speeds),
        "best_milliseconds": 1e3 * tokens / max(speeds),
        "runs_milliseconds": [1e3 * tokens / statistics.median(run["tokens_per_second"][SKIPPED:]) for run in runs],
        "tokens_per_second": statistics.median(speeds),
        "waiting": statistics.median(step["waiting"] / step["seconds"] for step in steps),
        "processor_milliseconds": 1e3 * statistics.median(step["processor"] for step in steps),
        "peak_bytes": max(rank["peak_bytes"] for rank in ranks),
        "payload": payload,
        "calls": runs[-1]["ranks"][0]["steps"][-1]["calls"],
        "sent": sent(payload, case.processes),
    }


def sent(payload: dict[str, int], processes: int) -> float:
    """Bytes that a rank sends if every collective is a ring."""
    share = (processes - 1) / processes
    return sum(RING.get(name, 1.0) * share * size for name, size in payload.items())


def ideal_sent(parameters: int, width: int, processes: int) -> float:
    """Bytes that a rank sends if each gradient is reduced once and each weight comes back once, `width` bytes each."""
    return 2 * (processes - 1) / processes * parameters * width


def efficiency(lines: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Time of one process over two times that of two: medians, best steps, each pair of runs on its own, and the
    processors' time alone, which other programs on the machine do not stretch."""
    by_title = {line["title"]: line for line in lines if line["group"] == "processes" and "refused" not in line}
    if BASE.title not in by_title or TWO.title not in by_title:
        return None
    one, two = by_title[BASE.title], by_title[TWO.title]
    pairs = [a / (2 * b) for a, b in zip(one["runs_milliseconds"], two["runs_milliseconds"], strict=False)]
    return {
        "processor": one["processor_milliseconds"] / (2 * two["processor_milliseconds"]),
        "median": one["milliseconds"] / (2 * two["milliseconds"]),
        "best": one["best_milliseconds"] / (2 * two["best_milliseconds"]),
        "worst_pair": min(pairs),
        "best_pair": max(pairs),
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return the results as lines of Markdown."""
    return [
        f"{result['cores']} cores, {result['config']}, one thread a process where nothing else is said; medians of a "
        f"run's steps after the first {result['skipped_steps']}. Sent: by one rank in a step, if every collective is a "
        f"ring; each of {result['parameters'] / 1e6:.1f} M gradients reduced once and each weight sent back once would "
        f"be {result['ideal_sent'] / 1e6:,.1f} MB for two processes.",
        "",
        "| what | rows a step | ms a step | tokens/s | of linear | processor ms | in collectives | memory a process | "
        "sent | calls |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(line, result["lines"], result["cores"]) for line in result["lines"]),
        *_verdict(result),
    ]


def _line(line: dict[str, Any], lines: Iterable[dict[str, Any]], cores: int) -> str:
    if "refused" in line:
        return f"| {line['title']} | {line['batch']} | refused: {line['refused']} | | | | | | | |"
    base = next((other for other in lines if other["title"] == BASE.title and other["batch"] == line["batch"]), None)
    workers = line["processes"] * line["threads"]
    linear = (
        "-" if base is None or "refused" in base else (f"{base['milliseconds'] / line['milliseconds'] / workers:.0%}")
    )
    crowded = f" ({workers} threads on {cores} cores)" if workers > cores else ""
    return " ".join(
        (
            "|",
            line["title"] + crowded,
            "|",
            str(line["batch"]),
            "|",
            f"{line['milliseconds']:,.0f}",
            "|",
            f"{line['tokens_per_second']:,.0f}",
            "|",
            linear,
            "|",
            f"{line['processor_milliseconds']:,.0f}",
            "|",
            f"{line['waiting']:.1%}",
            "|",
            f"{line['peak_bytes'] / 1e6:,.0f} MB",
            "|",
            f"{line['sent'] / 1e6:,.1f} MB",
            "|",
            str(sum(line["calls"].values())),
            "|",
        )
    )


def _verdict(result: dict[str, Any]) -> list[str]:
    found = result["efficiency"]
    if found is None:
        return []
    return [
        "",
        f"Two processes against one, of linear: {found['median']:.1%} (medians), {found['best']:.1%} (fastest "
        f"steps), {found['worst_pair']:.1%} to {found['best_pair']:.1%} (pairs of runs), "
        f"{found['processor']:.1%} (processor time, waiting left out); aim "
        f"{result['aim']:.0%}: {'reached' if found['median'] >= result['aim'] else 'missed'}.",
    ]
