"""A real two-process run for 45 minutes: is the memory of every process flat, are its files, threads and speed?

    python -m stress.soak --work runs/soak                       45 minutes, then 5 with frequent saves
    python -m stress.soak --work runs/soak --minutes 2 --aggressive_minutes 1

Every 10 seconds each process is looked at from outside: resident memory (RSS), its anonymous part (what was allocated,
as against files that are mapped), open file descriptors, threads. Slopes are least squares after a warm-up, with 95 %
intervals from a block bootstrap. The samples go into DIR/soak-samples.jsonl, the table into DIR/soak.md. Status 1 if a
slope is above its limit, the speed of the last third is lower than that of the first by more than its limit, or saving
takes more of the time than its limit.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from sample_stories import write_sample_corpus
from stress.chaos.compare import rows
from stress.chaos.session import ROOT, Process, Session, free_port

EVERY = 10.0  # seconds between two looks
WARM_UP = 5 * 60.0  # seconds; a third of a shorter run
BLOCK, RESAMPLES = 12, 1_000  # of the bootstrap: neighbouring samples are alike
# what may grow in an hour, and what share may be lost or spent
MEMORY_LIMIT, HANDLE_LIMIT, SPEED_LIMIT, SAVE_LIMIT = 20.0, 5.0, 0.1, 0.05
# figures of a process, their unit and limit
FIGURES = {
    "rss": (" MB", MEMORY_LIMIT),
    "anonymous": (" MB", MEMORY_LIMIT),
    "files": ("", HANDLE_LIMIT),
    "threads": ("", HANDLE_LIMIT),
}
END = 15.0  # seconds in which a run closes its files
STORIES, AGGRESSIVE = 20_000, 25
SAVED = re.compile(r"saved (\S+) \((?:([\d,.]+) MB in )?([\d.]+) s\)")


@dataclass(frozen=True)
class Sample:
    """One look at one process; memory in MB, `seconds` since the run's first step."""

    seconds: float
    role: str
    rss: float
    anonymous: float
    files: int
    threads: int


@dataclass(frozen=True)
class Slope:
    """Change an hour, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def above(self, limit: float) -> bool:
        """Whether it grows by more than that, and not by chance."""
        return self.value > limit and self.low > 0


@dataclass(frozen=True)
class Verdict:
    """A line of the table."""

    what: str
    found: str
    limit: str
    good: bool


def look(process: Process, seconds: float) -> Sample | None:
    """Read /proc; None if the process has gone."""
    folder = Path("/proc") / str(process.pid)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        rollup = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
        return Sample(
            round(seconds, 1),
            process.role,
            _megabytes(status["VmRSS"]),
            _megabytes(rollup["Anonymous"]),
            len(list((folder / "fd").iterdir())),
            int(status["Threads"]),
        )
    except (OSError, KeyError, ValueError):
        return None


def _megabytes(text: str) -> float:
    return int(text.split()[0]) * 1024 / 1e6


def slope(seconds: Sequence[float], values: Sequence[float], seed: int = 0) -> Slope:
    """Of a least-squares line, an hour; resampled in blocks of neighbours."""
    x, y = np.asarray(seconds, float) / 3600, np.asarray(values, float)
    if len(x) < 3 or np.ptp(x) == 0:
        raise ValueError(f"{len(x)} samples are too few for a slope")
    block, generator = min(BLOCK, max(1, len(x) // 4)), np.random.default_rng(seed)
    starts = np.arange(len(x) - block + 1)
    found = []
    for _ in range(RESAMPLES):
        chosen = generator.choice(starts, size=-(-len(x) // block))
        index = (chosen[:, None] + np.arange(block)).ravel()[: len(x)]
        if np.ptp(x[index]) > 0:
            found.append(np.polyfit(x[index], y[index], 1)[0])
    low, high = np.percentile(found, [2.5, 97.5])
    return Slope(float(np.polyfit(x, y, 1)[0]), float(low), float(high))


def watch(session: Session, run: Path, file: Path) -> list[Sample]:
    """Look at every process until the run ends; times count from its first step."""
    samples: list[Sample] = []
    session.wait_until(lambda: session.announced is not None, limit=900, pause=0.5)
    begun = next_look = time.monotonic()
    with file.open("w", encoding="utf-8") as opened:
        while not session.ended:
            for process in session.processes():
                if sample := look(process, time.monotonic() - begun):
                    samples.append(sample)
                    opened.write(json.dumps(asdict(sample)) + "\n")
            opened.flush()
            next_look += EVERY
            while not session.ended and time.monotonic() < next_look:
                time.sleep(0.2)
    return samples


def saving_share(output: str, seconds: float) -> tuple[int, float, float]:
    """(checkpoints, mean seconds of one, share of the `seconds` of a run) of its "saved" lines."""
    costs = [float(match[3]) for match in SAVED.finditer(output)]
    return len(costs), sum(costs) / len(costs) if costs else 0.0, sum(costs) / seconds if seconds else 0.0


def judge(samples: list[Sample], speeds: list[float], warm_up: float) -> list[Verdict]:
    """Slopes of every rank, and the speed of the last third beside the first."""
    verdicts, end = [], max(sample.seconds for sample in samples) - END
    for role in sorted({sample.role for sample in samples if sample.role.startswith("rank")}):
        own = [sample for sample in samples if sample.role == role and warm_up <= sample.seconds <= end]
        for figure, (unit, limit) in FIGURES.items():
            values = [float(getattr(sample, figure)) for sample in own]
            grows = slope([sample.seconds for sample in own], values)
            change = f"{grows.value:+.1f} an hour ({grows.low:+.1f} to {grows.high:+.1f})"
            verdicts.append(
                Verdict(
                    f"{role}, {figure}",
                    f"{values[0]:,.0f} -> {values[-1]:,.0f}{unit}, {change}",
                    f"+{limit:g} an hour",
                    not grows.above(limit),
                )
            )
    third = max(1, len(speeds) // 3)
    first, last = (float(np.median(part)) for part in (speeds[:third], speeds[-third:]))
    verdicts.append(
        Verdict(
            "tokens a second, first and last third",
            f"{first:,.0f}, {last:,.0f} ({last / first - 1:+.1%})",
            f"-{SPEED_LIMIT:.0%}",
            last >= first * (1 - SPEED_LIMIT),
        )
    )
    return verdicts


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as a table in Markdown."""
    return "\n".join(
        ["| what | found | limit | |", "|---|---|---|---|"]
        + [f"| {v.what} | {v.found} | {v.limit} | {'good' if v.good else '**too much**'} |" for v in verdicts]
    )


def _run(options: argparse.Namespace, name: str, minutes: float, flags: Sequence[str]) -> list[Verdict]:
    """One run that ends by its time limit, watched to its end."""
    work = options.work.resolve()
    run = work / name
    shutil.rmtree(run, ignore_errors=True)
    words = [
        "--deepspeed_config",
        ROOT / "ds_configs" / "cpu_x2.json",
        "--data",
        _corpus(work),
        "--output",
        run,
        "--skip_preflight",
        "--max_steps",
        "1000000",
        "--log_interval",
        "20",
        "--eval_interval",
        "500",
        "--time_limit",
        f"{minutes * 60 + 20:.0f}s",
        *flags,
        *options.flags,
    ]
    with Session(words, folder=work, log=work / f"{name}.log", port=free_port()) as session:
        samples = watch(session, run, work / f"{name}-samples.jsonl")
        output, status = session.output, session.runner.returncode
    if status != 0 or not samples:
        return [Verdict(f"{name}: the run", f"ended with {status}: {output[-300:]}", "0", False)]
    seconds, warm_up = samples[-1].seconds, min(WARM_UP, minutes * 20)
    speeds = [row["tokens_per_second"] for row in rows(run / "metrics.jsonl") if row["split"] == "train"][1:]
    count, mean, share = saving_share(output, seconds)
    interval = flags[flags.index("--save_interval") + 1] if "--save_interval" in flags else "default"
    saving = Verdict(
        f"saving, interval {interval}",
        f"{count} checkpoints of {mean:.2f} s, {share:.2%} of the time",
        f"{SAVE_LIMIT:.0%}",
        share <= SAVE_LIMIT,
    )
    return [*(judge(samples, speeds, warm_up) if name == "soak" else []), saving]


def _corpus(work: Path) -> Path:
    folder = work / "corpus"
    if not (folder / "manifest.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        write_sample_corpus(work / "stories.jsonl", STORIES, hamlet=True)
        prepare([work / "stories.jsonl"], folder, PreparationSettings(vocab_size=2_000), progress=None)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status as above."""
    options = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no run outlives the harness
    verdicts = _run(options, "soak", options.minutes, [])
    if options.aggressive_minutes:
        verdicts += _run(
            options, "aggressive", options.aggressive_minutes, ["--save_interval", str(options.aggressive)]
        )
    text = table(verdicts)
    (options.work / "soak.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(verdict.good for verdict in verdicts) else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stress.soak",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, metavar="DIR")
    add("--minutes", type=float, default=45, metavar="N", help="of training (%(default)s)")
    add(
        "--aggressive_minutes",
        type=float,
        default=5,
        metavar="N",
        help="of the run with frequent saves; 0 leaves it out (%(default)s)",
    )
    add("--aggressive", type=int, default=AGGRESSIVE, metavar="N", help="its --save_interval (%(default)s)")
    add("flags", nargs="*", metavar="FLAG", help="more flags of train.py, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
