"""The process that is fuzzed: atheris invents cases and is told by the coverage which of them reach new code.

It may die (an abort in a library, memory, a case that hangs), so it keeps its figures in a file as it goes, and the
process that started it (`__main__`) starts it again.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

from stress.fuzz.guard import Guard, Outcome
from stress.fuzz.targets import TARGETS, build

MEMORY_BYTES = 2 * 2**30  # that one case may take on top of what the libraries have
CASE_SECONDS = 20  # a case takes 10 ms; the machine may be busy
MOST_BYTES = 4096  # of a case
WRITE_EVERY = 2.0  # seconds
FIGURES, REPRODUCERS = "figures.json", "reproducers"


class Record:
    """Tries, outcomes and findings of a process, kept in `folder`; each finding once, with its reproducer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tries = 0
        self.outcomes: Counter[str] = Counter()
        self.findings: dict[str, str] = {}
        self._written = 0.0

    def add(self, outcome: Outcome, data: bytes) -> None:
        """Take note of a case."""
        self.tries += 1
        self.outcomes[f"{outcome.kind}: {outcome.label}"] += 1
        new = outcome.kind == "finding" and outcome.label not in self.findings
        if new:
            file = self.folder / REPRODUCERS / f"{sha256(data).hexdigest()[:12]}.bin"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            file.with_suffix(".txt").write_text(
                f"{outcome.label}\n\n{outcome.details}", encoding="utf-8", errors="backslashreplace"
            )
            self.findings[outcome.label] = str(file)
        if new or time.monotonic() - self._written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """The figures so far."""
        self._written = time.monotonic()
        content = {"tries": self.tries, "outcomes": dict(self.outcomes.most_common()), "findings": self.findings}
        (self.folder / FIGURES).write_text(json.dumps(content, indent=1), encoding="utf-8")


def main(name: str, folder: Path, seconds: float, seed: int) -> None:
    """Fuzz one target for so long; does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
        include=list(TARGETS[name].packages)
    ):
        case = build(name)
    guard = Guard(Path(tempfile.mkdtemp(prefix="fuzz-")))
    record = Record(folder)
    cases = folder / "cases"  # what reached new code; kept, so that a second run begins where the first ended
    cases.mkdir(exist_ok=True)
    for number, content in enumerate(case.seeds()):
        (cases / f"seed-{number:03}").write_bytes(content)

    def one(data: bytes) -> None:
        record.add(guard.run(case, data), data)

    _limit_memory(MEMORY_BYTES)
    atheris.Setup(
        [
            name,
            f"-max_total_time={max(1, int(seconds))}",
            f"-timeout={CASE_SECONDS}",
            "-rss_limit_mb=0",
            f"-max_len={MOST_BYTES}",
            f"-seed={seed}",
            "-report_slow_units=1000",
            "-len_control=0",
            f"-artifact_prefix={folder}/dead-",
            str(cases),
        ],
        one,
    )
    atheris.Fuzz()


def _limit_memory(more: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
