"""Fuzz what reads the user's files: nothing but success or one sentence for the user may come out.

    python -m stress.fuzz --minutes 10                       every target in turn, so long each
    python -m stress.fuzz --minutes 10 --target manifest
    python -m stress.fuzz --target manifest --replay runs/fuzz/manifest/reproducers/0123456789ab.bin

A finding is any other exception, a message that a terminal cannot show, a case that takes 20 seconds or 2 GiB, a
process that dies, a file written or read outside of the case's folder, and anything that would run code of a file.
Each is saved with its traceback under --output. Needs atheris (requirements-dev.txt, Linux). Status 1 if anything was
found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stress.fuzz.guard import Guard
from stress.fuzz.loop import FIGURES
from stress.fuzz.targets import TARGETS, build

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60  # for the imports; after that and the time given, the process must have ended


@dataclass
class Total:
    """One target's figures, over all the processes that it took."""

    name: str
    seconds: float = 0.0
    tries: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)

    def take(self, folder: Path) -> None:
        """Add the figures that a process left."""
        file = folder / FIGURES
        if not file.is_file():
            return
        figures = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        self.tries += figures["tries"]
        self.outcomes.update(figures["outcomes"])
        self.findings |= {label: path for label, path in figures["findings"].items() if label not in self.findings}

    def take_dead(self, folder: Path) -> None:
        """What killed a process: libFuzzer saves the case as dead-crash-..., dead-timeout-... or dead-oom-...."""
        for path in sorted(folder.glob("dead-*")):
            label = f"process died ({path.name.split('-')[1]})"
            self.findings.setdefault(label, str(path))

    def line(self) -> str:
        """A row of the table."""
        kinds = Counter(outcome.partition(":")[0] for outcome in self.outcomes)
        return (
            f"| {self.name} | {self.tries:,} | {self.seconds / 60:.1f} min | {kinds['fine'] + kinds['refused']} "
            f"({kinds['fine']} of success, {kinds['refused']} of refusal) | {len(self.findings)} |"
        )


def main(argv: list[str] | None = None) -> int:
    """Exit status as above."""
    options = _arguments(argv)
    if options.replay:
        return _replay(options.target, options.replay)
    totals = []
    for name in [options.target] if options.target else TARGETS:
        print(f"{name}: {TARGETS[name].about}, {options.minutes:g} minutes", file=sys.stderr, flush=True)
        totals.append(_fuzz(name, options.output.resolve() / name, 60 * options.minutes, options.seed))
    print("| target | tries | time | distinct outcomes | findings |\n|---|---|---|---|---|")
    print("\n".join(total.line() for total in totals))
    for total in totals:
        for label, path in total.findings.items():
            print(f"FOUND {total.name}: {label}\n      python -m stress.fuzz --target {total.name} --replay {path}")
    return 1 if any(total.findings for total in totals) else 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stress.fuzz",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10, help="for each target (%(default)s)")
    add("--target", choices=TARGETS, help="this one alone")
    add("--output", type=Path, default=Path("runs/fuzz"), metavar="DIR", help="cases and findings (%(default)s)")
    add("--seed", type=int, default=1, help="of the cases; which ones come also depends on timing (%(default)s)")
    add("--replay", type=Path, metavar="FILE", help="run one saved case of --target and show what becomes of it")
    options = parser.parse_args(argv)
    if options.replay and not options.target:
        parser.error("--replay needs the --target that the case is for")
    return options


def _fuzz(name: str, folder: Path, seconds: float, seed: int) -> Total:
    """Keep a process at work until the time is up."""
    folder.mkdir(parents=True, exist_ok=True)
    total, started = Total(name), time.monotonic()
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        while (left := seconds - (time.monotonic() - started)) > 1:
            command = [sys.executable, "-m", "stress.fuzz.loop", name, str(folder), str(left), str(seed)]
            before = total.tries
            try:
                status = subprocess.run(
                    command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=left + START_SECONDS
                ).returncode
            except subprocess.TimeoutExpired:
                status = "hung"
            total.take(folder)
            total.take_dead(folder)
            seed += 1
            if status and total.tries == before:
                total.findings[f"the fuzzing process does not start (status {status})"] = str(folder / "log.txt")
                break
    total.seconds = time.monotonic() - started
    (folder / "outcomes.json").write_text(json.dumps(total.outcomes.most_common(), indent=1), encoding="utf-8")
    return total


def _replay(name: str, path: Path) -> int:
    with tempfile.TemporaryDirectory() as place:
        outcome = Guard(Path(place)).run(build(name), path.read_bytes())
        print(f"{outcome.kind}: {outcome.label}\n{outcome.details}")
        print("\n".join(f"  {entry.name}" for entry in sorted(Path(place, "case").iterdir())))
    return 1 if outcome.kind == "finding" else 0


if __name__ == "__main__":
    sys.exit(main())
