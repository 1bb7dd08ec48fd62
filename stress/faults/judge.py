"""A case from its corpus to its verdict: trained with the fault, diagnosed without it, checked by preflight with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stress.faults.cases import Case, Setting

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Verdict:
    """A line of the table. `causes` are (id, confidence), surest first; `preflight` (id, level) of all but passes."""

    name: str
    expected: list[str]
    steps: int
    val_loss: float | None
    stands: str | None
    causes: list[tuple[str, float]]
    preflight: list[tuple[str, str]] | None
    parrots: bool | None

    @property
    def right(self) -> bool:
        """The expected cause first; for a healthy run no cause, and nothing that preflight would stop it for."""
        if self.expected:
            return bool(self.causes) and self.causes[0][0] in self.expected
        return not self.causes and not any(level == "fail" for _, level in self.preflight or [])

    def record(self) -> dict[str, Any]:
        """Return what results.json holds of it."""
        return asdict(self) | {"right": self.right}


class Bench:
    """Runs cases into `folder`/NAME; what is there already is kept unless the command line differs."""

    def __init__(self, folder: Path, setting: Setting, corpora: dict[str, Path], with_preflight: bool = True) -> None:
        self.folder, self.setting, self.corpora, self.with_preflight = folder, setting, corpora, with_preflight

    def train(self, case: Case) -> None:
        """In a process of its own, with the fault."""
        run = self.folder / case.name
        arguments = self._arguments(case, run)
        command = [part.replace(str(ROOT), ".") for part in (case.plant, *arguments)]
        if (run / "summary.json").is_file() and _read(self._note(case)) == command:
            return
        shutil.rmtree(run, ignore_errors=True)  # half of an older run, or another one
        done = _call(
            ["-m", "stress.faults.child", case.plant, *arguments, "--skip_preflight"], self.folder / f"{case.name}.log"
        )
        if done:
            raise RuntimeError(f"{case.name}: training ended with status {done}; see {self.folder}/{case.name}.log")
        self._note(case).write_text(json.dumps(command), encoding="utf-8")

    def check(self, case: Case) -> None:
        """train.py --preflight in a process with the fault; its report lies beside the run, where no judge sees it."""
        report = self._report(case)
        arguments = self._arguments(case, report.parent)
        if self.with_preflight and not report.is_file():
            _call(
                ["-m", "stress.faults.child", case.plant, *arguments, "--preflight"],
                self.folder / f"{case.name}.preflight.log",
            )

    def judge(self, case: Case) -> Verdict:
        """diagnose.py on the run's folder, in a process without the fault."""
        run, out = self.folder / case.name, self.folder / f"{case.name}.diagnosis.json"
        out.unlink(missing_ok=True)
        status = _call(
            ["diagnose.py", "--checkpoint", str(run), "--quick", "--json", str(out)],
            self.folder / f"{case.name}.diagnosis.log",
        )
        if not out.is_file():
            raise RuntimeError(f"{case.name}: diagnose.py ended with status {status}; see {out.with_suffix('.log')}")
        return self._verdict(case, _read(out), _read(run / "summary.json") or {})

    def _verdict(self, case: Case, found: dict[str, Any], summary: dict[str, Any]) -> Verdict:
        report = _read(self._report(case))
        stopped = report and [(check["id"], check["level"]) for check in report["checks"] if check["level"] != "pass"]
        return Verdict(
            case.name,
            list(case.expected),
            summary.get("steps", 0),
            summary.get("best_val_loss"),
            found["ladder"]["stands"] if found.get("ladder") else None,
            [(cause["id"], round(cause["confidence"], 2)) for cause in found["causes"]],
            stopped if report else None,
            found["verdict"]["parrots"],
        )

    def _arguments(self, case: Case, output: Path) -> list[str]:
        return case.arguments(self.setting, self.corpora[case.corpus_name(self.setting)], output)

    def _note(self, case: Case) -> Path:
        return self.folder / f"{case.name}.command.json"

    def _report(self, case: Case) -> Path:
        return self.folder / "preflight" / case.name / "preflight.json"


def _call(arguments: list[str], log: Path) -> int:
    """A Python process in the project's folder; all it prints goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
    with log.open("w", encoding="utf-8") as file:
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
