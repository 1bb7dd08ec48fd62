"""One step by parts, with experts and without, on one process and on two, beside the machine's floor."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import inputs
from benchmarks.inputs import Skip
from benchmarks.machine import copy_bandwidth, matrix_rate
from benchmarks.speed.scaling import corpus
from benchmarks.speed.step_child import FOLDER
from corpus.tokenizer import load_tokenizer
from model import ModelConfig
from stress.chaos.session import ROOT, Session, free_port
from training.config.command_line import positive
from training.planning.flops import training_flops_per_token

NAME = "step"
AIM_OUTSIDE, AIM_EXPERTS = 0.05, 1.25
SKIPPED = 3  # first steps, which build buffers and kernels
SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_experts": 4,
}
WIDTH = 832
"""Of the dense layer, and of all experts together that a token goes through."""
SEQ_LEN, ROWS = 512, 8
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PARTS = (
    "data",
    "embedding",
    "attention",
    "router",
    "dispatch",
    "experts",
    "norms and sums",
    "head and loss",
    "backward",
    "reduction",
    "optimizer",
    "loop",
)
OUTSIDE = ("data", "reduction", "loop")
"""What is neither the model's computation nor the optimizer's."""


@dataclass(frozen=True)
class Case:
    """One kind of run."""

    precision: str
    top_k: int
    """Experts a token goes through; 0 for the dense model."""
    processes: int = 1

    @property
    def title(self) -> str:
        """The case in words."""
        kind = f"top-{self.top_k} of {SHAPE['num_experts']}" if self.top_k else "dense"
        return f"{kind}, {self.precision}, {self.processes} process{'es' if self.processes > 1 else ''}"

    def shape(self) -> dict[str, Any]:
        """Return the shape as ModelConfig has it: the same active width with one expert, two and none."""
        return SHAPE | {
            "use_moe": self.top_k > 0,
            "num_experts_per_tok": self.top_k or 1,
            "intermediate_size": WIDTH,
            "moe_intermediate_size": WIDTH // (self.top_k or 1),
        }

    def flags(self, config: Path, data: Path, run: Path, steps: int) -> list[object]:
        """Return the flags of train.py."""
        named = self.shape() | {
            "max_seq_len": SEQ_LEN,
            "eval_interval": 10**6,
            "eval_tokens": 2_000,
            "sample_interval": 10**6,
            "save_interval": 10**6,
            "max_steps": steps,
            "log_interval": 1,
        }
        words = [word for name, value in named.items() for word in (f"--{name}", str(value).lower())]
        return [
            "--deepspeed_config",
            config,
            "--data",
            data,
            "--output",
            run,
            "--skip_preflight",
            *words,
            "--set",
            f"train_micro_batch_size_per_gpu={ROWS // self.processes}",
            "train_batch_size=auto",
            f"bf16.enabled={str(self.precision == 'bf16').lower()}",
        ]


def cases(precisions: Sequence[str]) -> list[Case]:
    """Of each precision: dense and both kinds of experts in turn on one process, and one kind on two."""
    return [
        Case(precision, top_k, processes)
        for precision in precisions
        for top_k, processes in ((0, 1), (1, 1), (2, 1), (1, 2))
    ]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Its own flags."""
    add = parser.add_argument
    add("--step_data", type=inputs.prepared, metavar="DIR", help="a prepared corpus (sample stories)")
    add(
        "--step_config",
        type=inputs.file,
        default=ROOT / "ds_configs" / "cpu_x2.json",
        metavar="FILE",
        help="the experiment (ds_configs/cpu_x2.json)",
    )
    add(
        "--step_count",
        type=positive,
        default=10,
        metavar="N",
        help=f"of a run, after {SKIPPED} that do not count (%(default)s)",
    )
    add(
        "--step_rounds",
        type=positive,
        default=3,
        metavar="N",
        help="turns of all runs, of which the fastest counts (%(default)s)",
    )
    add(
        "--step_precisions",
        nargs="+",
        choices=list(DTYPES),
        default=list(DTYPES),
        metavar="P",
        help=f"of {', '.join(DTYPES)} (all)",
    )


def measure(work: Path, flags: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds by part for every case, and the floor; one thread a process."""
    if not Path("/proc/self/status").exists():
        raise Skip("the step part ends its processes with Linux's /proc: run it on Linux")
    work = work.resolve() / NAME
    data = flags.step_data or corpus(work)
    chosen = cases(flags.step_precisions)
    best = _fastest(chosen, flags, data, work, say)
    return {
        "floor": _floor(flags.step_precisions),
        "lines": [_against_floor(best[case], data) for case in chosen],
        "rows": ROWS,
        "seq_len": SEQ_LEN,
        "shape": SHAPE | {"width": WIDTH},
        "rounds": flags.step_rounds,
    }


def _fastest(
    chosen: Sequence[Case], flags: argparse.Namespace, data: Path, work: Path, say: Callable[[str], None]
) -> dict[Case, dict[str, Any]]:
    """Of each case its fastest run: they take turns, since other work on a machine comes and goes by the minute."""
    begun, best = time.perf_counter(), {}
    turns = [(number, case) for number in range(flags.step_rounds) for case in chosen]
    for done, (number, case) in enumerate(turns):
        left = (time.perf_counter() - begun) / max(1, done) * (len(turns) - done)
        say(
            f"step {done + 1}/{len(turns)}: {case.title}, round {number + 1} "
            f"({f'about {left:.0f} s left' if done else 'about half a minute each'})"
        )
        line = {
            "title": case.title,
            "precision": case.precision,
            "top_k": case.top_k,
            "processes": case.processes,
            **_run(case, flags, data, work),
        }
        if case not in best or line["milliseconds"] < best[case]["milliseconds"]:
            best[case] = line
    return best


def _floor(precisions: Sequence[str]) -> dict[str, float]:
    """With one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = {name: matrix_rate(DTYPES[name], 2048, WIDTH, SHAPE["hidden_size"]) for name in precisions}
        return rates | {"bytes_per_second": copy_bandwidth()}
    finally:
        torch.set_num_threads(threads)


def _run(case: Case, flags: argparse.Namespace, data: Path, work: Path) -> dict[str, Any]:
    run, counts = work / "run", work / "counts"
    for folder in (run, counts):
        shutil.rmtree(folder, ignore_errors=True)
    counts.mkdir(parents=True)
    words = case.flags(flags.step_config, data, run, SKIPPED + flags.step_count)
    with Session(
        words,
        folder=work,
        log=work / "logs" / f"{case.title}.log".replace(" ", "-"),
        port=free_port(),
        processes=case.processes,
        script=("--module", "benchmarks.speed.step_child"),
        environment={"OMP_NUM_THREADS": "1", FOLDER: str(counts)},
    ) as session:
        status = session.wait_end(300.0)
        if status != 0:
            last = next((line for line in reversed(session.said) if line.strip()), "nothing")
            raise RuntimeError(f"{case.title} ended with status {status}: {last.strip()}")
    return parts_of(json.loads((counts / "rank0.json").read_text()), SKIPPED)


def parts_of(rank: dict[str, Any], skipped: int) -> dict[str, Any]:
    """Median milliseconds of each part over the steps that count, and of the whole."""
    steps = rank["steps"][skipped:]
    parts = {part: 1e3 * statistics.median(step.get(part, 0.0) for step in steps) for part in PARTS}
    return {
        "parts": parts,
        "milliseconds": 1e3 * statistics.median(sum(step.values()) for step in steps),
        "peak_bytes": rank["peak_bytes"],
    }


def _against_floor(line: dict[str, Any], data: Path) -> dict[str, Any]:
    """With tokens a second and the model's FLOPs a second added, of all processes."""
    case = Case(line["precision"], line["top_k"], line["processes"])
    vocabulary = load_tokenizer(data / "tokenizer.json").get_vocab_size()
    speed = ROWS * SEQ_LEN / line["milliseconds"] * 1e3
    flops = training_flops_per_token(ModelConfig(vocab_size=vocabulary, **case.shape()), SEQ_LEN)
    outside = sum(line["parts"][part] for part in OUTSIDE) / line["milliseconds"]
    return line | {"tokens_per_second": speed, "flops_per_second": speed * flops, "outside": outside}


def experts_against_dense(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Step time over the dense model's of the same precision on one process."""
    dense = {line["precision"]: line["milliseconds"] for line in lines if not line["top_k"] and line["processes"] == 1}
    return {
        line["title"]: line["milliseconds"] / dense[line["precision"]]
        for line in lines
        if line["top_k"] and line["processes"] == 1 and line["precision"] in dense
    }


def table(result: dict[str, Any]) -> list[str]:
    """Markdown: parts down, cases across."""
    lines, floor = result["lines"], result["floor"]
    rows = [["ms of a step", *(line["title"] for line in lines)], ["---"] * (len(lines) + 1)]
    rows += [[part, *(f"{line['parts'][part]:,.1f}" for line in lines)] for part in PARTS]
    rows += [
        ["**step**", *(f"**{line['milliseconds']:,.0f}**" for line in lines)],
        ["tokens/s", *(f"{line['tokens_per_second']:,.0f}" for line in lines)],
        ["of the matrix peak", *(_utilisation(line, floor) for line in lines)],
        ["outside compute", *(f"{line['outside']:.1%}" for line in lines)],
        ["memory of a process, MB", *(f"{line['peak_bytes'] / 1e6:,.0f}" for line in lines)],
    ]
    ratios = ", ".join(f"{title}: {ratio:.2f}" for title, ratio in experts_against_dense(lines).items())
    return [
        f"{result['rows']} rows of {result['seq_len']} a step, hidden {SHAPE['hidden_size']}, "
        f"{SHAPE['num_hidden_layers']} layers, active width {WIDTH}, one thread a process; medians of rank 0's steps, "
        f"the fastest of {result['rounds']} runs. A part's time is its own, without the parts within it.",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "Floor, one thread: "
        + ", ".join(
            f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in floor.items() if name != "bytes_per_second"
        )
        + f"; {floor['bytes_per_second'] / 1e9:.0f} GB/s copied.",
        f"Step time over the dense step: {ratios} (aim at most {AIM_EXPERTS}). Outside compute: "
        f"{', '.join(OUTSIDE)} (aim under {AIM_OUTSIDE:.0%} on one process).",
    ]


def _utilisation(line: dict[str, Any], floor: dict[str, float]) -> str:
    threads = min(line["processes"], os.cpu_count() or 1)
    return f"{line['flops_per_second'] / (threads * floor[line['precision']]):.0%}"
