"""Fuzz what reads the user's files: nothing but success or one sentence for the user may come out.

    python -m stress.fuzz manifest --minutes 10
    python -m stress.fuzz manifest --replay runs/fuzz/manifest/crash-0123456789abcdef

atheris invents cases, guided by the coverage of the code that reads them, and stops at the first finding: any other
exception, a message that a terminal cannot show, a case that takes 20 seconds or 2 GiB, a file written or read outside
of the case's folder, and anything that would run code of a file. It lies under --output then, for --replay. What
reached new code is kept there too, so that a second run begins where the first ended. Needs atheris
(requirements-dev.txt, Linux).
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from stress.fuzz.guard import Guard
from stress.fuzz.targets import TARGETS, build

MEMORY_BYTES = 2 * 2**30  # that one case may take on top of what the libraries have
CASE_SECONDS = 20  # a case takes 10 ms; the machine may be busy
MOST_BYTES = 4096  # of a case


def main(argv: list[str] | None = None) -> int:
    """Return 1 if a replayed case is a finding; fuzzing does not return, for libFuzzer ends the process."""
    options = _arguments(argv)
    guard = Guard(Path(tempfile.mkdtemp(prefix="fuzz-")))
    if options.replay:
        outcome = guard.run(build(options.target), options.replay.read_bytes())
        print(f"{outcome.kind}: {outcome.label}\n{outcome.details}")
        return 1 if outcome.kind == "finding" else 0
    _fuzz(guard, options.target, options.output.resolve() / options.target, 60 * options.minutes)
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stress.fuzz",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("target", choices=TARGETS, help="; ".join(f"{name}: {target.about}" for name, target in TARGETS.items()))
    add("--minutes", type=float, default=10, help="(%(default)s)")
    add("--output", type=Path, default=Path("runs/fuzz"), metavar="DIR", help="cases and findings (%(default)s)")
    add("--replay", type=Path, metavar="FILE", help="run one saved case and show what becomes of it")
    return parser.parse_args(argv)


def _fuzz(guard: Guard, name: str, folder: Path, seconds: float) -> None:
    import atheris

    with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
        include=list(TARGETS[name].packages)
    ):
        case = build(name)
    cases = folder / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(case.seeds()):
        (cases / f"seed-{number:03}").write_bytes(content)

    def one(data: bytes) -> None:
        outcome = guard.run(case, data)
        if outcome.kind == "finding":
            raise AssertionError(f"{outcome.label}\n{outcome.details}")

    _limit_memory(MEMORY_BYTES)
    atheris.Setup(
        [
            name,
            f"-max_total_time={max(1, int(seconds))}",
            f"-timeout={CASE_SECONDS}",
            "-rss_limit_mb=0",
            f"-max_len={MOST_BYTES}",
            "-report_slow_units=1000",
            "-len_control=0",
            f"-artifact_prefix={folder}/",
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
    sys.exit(main())
