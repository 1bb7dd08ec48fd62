"""Do experts pay? Dense and mixture-of-experts models of one active width, each given the same wall-clock time."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import inputs
from benchmarks.inputs import Skip
from benchmarks.speed.scaling import corpus
from stress.chaos.session import ROOT, Session, free_port
from training.config.command_line import positive

NAME = "experts"
EXPERTS = 4


@dataclass(frozen=True)
class Case:
    """A model: `top_k` experts a token goes through, 0 for the dense one."""

    hidden_size: int
    top_k: int

    @property
    def title(self) -> str:
        """The case in words."""
        return f"top-{self.top_k} of {EXPERTS}" if self.top_k else "dense"

    def flags(self, config: Path, data: Path, run: Path, budget: str) -> list[object]:
        """Return the flags of train.py; the schedule ends where the time does."""
        width = self.hidden_size * 13 // 4
        named = {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": 4,
            "num_attention_heads": self.hidden_size // 32,
            "num_key_value_heads": self.hidden_size // 64,
            "use_moe": self.top_k > 0,
            "num_experts": EXPERTS,
            "num_experts_per_tok": self.top_k or 1,
            "intermediate_size": width,
            "moe_intermediate_size": width // (self.top_k or 1),
            "max_seq_len": 512,
            "eval_tokens": 0,
            "sample_interval": 10**6,
            "save_interval": 10**6,
            "log_interval": 10,
            "budget": budget,
        }
        words = [word for name, value in named.items() for word in (f"--{name}", str(value).lower())]
        return ["--deepspeed_config", config, "--data", data, "--output", run, "--skip_preflight", *words]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Its own flags."""
    add = parser.add_argument
    add("--experts_data", type=inputs.prepared, metavar="DIR", help="a prepared corpus (sample stories)")
    add(
        "--experts_config",
        type=inputs.file,
        default=ROOT / "ds_configs" / "cpu_x2.json",
        metavar="FILE",
        help="the experiment (ds_configs/cpu_x2.json)",
    )
    add("--experts_budget", default="5m", metavar="TIME", help="of each run, from command to end (%(default)s)")
    add("--experts_sizes", nargs="+", type=positive, default=[128, 256], metavar="N", help="hidden sizes (128 256)")


def measure(work: Path, flags: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Validation loss of each model after the same time."""
    if not Path("/proc/self/status").exists():
        raise Skip("the experts part ends its processes with Linux's /proc: run it on Linux")
    work = work.resolve() / NAME
    data = flags.experts_data or corpus(work)
    cases = [Case(size, top_k) for size in flags.experts_sizes for top_k in (0, 1, 2)]
    lines = []
    for number, case in enumerate(cases, 1):
        say(f"experts {number}/{len(cases)}: hidden {case.hidden_size}, {case.title} ({flags.experts_budget})")
        lines.append({"hidden_size": case.hidden_size, "title": case.title, **_run(case, flags, data, work)})
    return {"budget": flags.experts_budget, "config": flags.experts_config.name, "lines": lines}


def _run(case: Case, flags: argparse.Namespace, data: Path, work: Path) -> dict[str, Any]:
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    words, begun = case.flags(flags.experts_config, data, run, flags.experts_budget), time.perf_counter()
    log = work / "logs" / f"{case.hidden_size}-{case.title}.log".replace(" ", "-")
    with Session(words, folder=work, log=log, port=free_port(), environment={"OMP_NUM_THREADS": "1"}) as session:
        status = session.wait_end(1800.0)
        if status != 0:
            last = next((line for line in reversed(session.said) if line.strip()), "nothing")
            raise RuntimeError(f"hidden {case.hidden_size}, {case.title} ended with status {status}: {last.strip()}")
    return outcome([json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]) | {
        "seconds": time.perf_counter() - begun
    }


def outcome(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where a run ended, from its metrics."""
    last = [row for row in rows if row["split"] == "val"][-1]
    speeds = [row["tokens_per_second"] for row in rows if row["split"] == "train"]
    return {
        "tokens": last["tokens"],
        "steps": last["step"],
        "bits_per_byte": last["bits_per_byte"],
        "loss": last["loss"],
        "tokens_per_second": speeds[-1],
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return the results as lines of Markdown."""
    lines = result["lines"]
    best = {
        size: min(line["bits_per_byte"] for line in lines if line["hidden_size"] == size)
        for size in {line["hidden_size"] for line in lines}
    }
    return [
        f"Two processes, {result['config']}, {result['budget']} each from command to end, the schedule as long as "
        f"that; {EXPERTS} experts, the same active width.",
        "",
        "| hidden | model | M tokens | tokens/s | validation loss | bits a byte | |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {line['hidden_size']} | {line['title']} | {line['tokens'] / 1e6:.2f} | "
            f"{line['tokens_per_second']:,.0f} | {line['loss']:.3f} | {line['bits_per_byte']:.3f} | "
            f"{'best' if line['bits_per_byte'] == best[line['hidden_size']] else ''} |"
            for line in lines
        ),
    ]
