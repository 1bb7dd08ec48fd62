"""Asked to stop: by Ctrl-C, by SIGTERM to any process, by the time limit, twice."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM

from stress.chaos import compare
from stress.chaos.record import Journal, Trial
from stress.chaos.session import Session
from stress.chaos.workplace import ENDLESS, Workplace
from training.checkpointing.checkpoint import damage

CATEGORY = "asked to stop"
STOP_LIMIT = 30.0
REASONS = ("stopped by", "another process was asked to stop", "time limit reached", "the launcher is gone")
PATIENT = 4.0  # seconds after which a signal is a second one, not the same from another sender
LONG_STEP = ("gradient_accumulation_steps=128", "train_batch_size=1024")
LIMIT = 45  # of --time_limit, seconds
AFTER_STEPS = 7  # of a session, between two saves


@dataclass(frozen=True)
class Request:
    """A signal to some processes, once or twice `apart` seconds apart."""

    name: str
    number: int
    roles: tuple[str, ...]
    twice: bool = False
    apart: float = 0.3


REQUESTS = (
    Request("Ctrl-C (SIGINT to the process group)", SIGINT, ("group",)),
    Request("SIGTERM to the process group", SIGTERM, ("group",)),
    Request("SIGTERM to the ranks", SIGTERM, ("ranks",)),
    Request("SIGINT to rank 1", SIGINT, ("rank1",)),
    Request("SIGTERM to launch.py", SIGTERM, ("launch",)),
    Request("SIGTERM to the deepspeed command", SIGTERM, ("runner",)),
    Request("SIGINT to the deepspeed command", SIGINT, ("runner",)),
    Request("SIGTERM to the ranks twice within a second", SIGTERM, ("ranks",), twice=True),
    Request("Ctrl-C twice within two seconds", SIGINT, ("group",), twice=True, apart=1.5),
)


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """Each request on a run that continues, then the time limit."""
    reference = work.reference()
    base = work.fresh("stopping")
    for request in REQUESTS:
        if compare.last_step(base) > work.pace.steps - 3 * AFTER_STEPS:
            _end(work, base, reference, journal)
            base = work.fresh("stopping")
        _ask(work, journal, base, request)
    _time_limit(work, journal)
    _at_once(work, journal)
    _end(work, base, reference, journal)


def _end(work: Workplace, base: Path, reference: Path, journal: Journal) -> None:
    """What was stopped many times must end as if it never had been."""
    session = work.finish(base, "after-the-stops")
    trial = Trial(CATEGORY, "the run that was stopped, against the uninterrupted one", facts={"log": session.log.name})
    trial.expect(session.runner.returncode == 0, f"exit status {session.runner.returncode}: {session.output[-300:]}")
    if session.runner.returncode == 0:
        trial.problems += compare.differences(base, reference)
    journal.add(trial)


def _ask(work: Workplace, journal: Journal, base: Path, request: Request) -> None:
    """One request in the middle of a session. A single one must end in order, a second one at once."""
    trial = Trial(CATEGORY, request.name)
    with work.session(work.flags(base), "stop") as session:
        trial.facts["log"] = session.log.name
        if not _trained(session, base):
            trial.expect(False, f"ended before it was asked to: {session.output[-300:]}")
            journal.add(trial)
            return
        asked = time.monotonic()
        session.send(request.number, *request.roles)
        reached = compare.last_step(base)
        if request.twice:
            time.sleep(request.apart)
            session.send(request.number, *request.roles)
        gone = session.wait_gone(90)
        trial.seconds_to_stop = None if gone is None else time.monotonic() - asked
        trial.expect(
            trial.seconds_to_stop is not None and trial.seconds_to_stop <= STOP_LIMIT,
            f"{', '.join(p.role for p in session.sweep()) or 'the last process'} was still there after "
            f"{STOP_LIMIT:.0f} s",
        )
        trial.expect(not session.port_bound, f"port {session.port} is still bound")
        _judge(trial, session, base, reached, orderly=not request.twice)
    journal.add(trial)


def _trained(session: Session, base: Path) -> bool:
    """Whether the session has come a few steps further."""
    return session.wait_until(
        lambda: session.announced is not None and compare.last_step(base) >= session.announced + AFTER_STEPS
    )


def _judge(trial: Trial, session: Session, base: Path, reached: int, *, orderly: bool) -> None:
    """In order: a checkpoint of the last step, the summary, the ranks' exit status 0. Else the last one is whole."""
    statuses = rank_statuses(session.output)
    trial.facts |= {"exit status": session.runner.returncode, "ranks": statuses}
    state = _newest(base)
    trial.steps_lost = max(0, compare.last_step(base) - state)
    if orderly:
        summary = _summary(base)
        trial.facts["reason"] = summary.get("reason")
        trial.expect(
            summary.get("steps") == state == compare.last_step(base),
            f"summary.json says step {summary.get('steps')}, the newest checkpoint is of {state}, the figures "
            f"end at {compare.last_step(base)}",
        )
        trial.expect(
            any(word in str(summary.get("reason")) for word in REASONS), f"the reason is {summary.get('reason')!r}"
        )
        trial.expect(state >= reached, f"step {reached} was reached, the checkpoint is of {state}")
        trial.expect(all(status == 0 for status in statuses), f"exit statuses of the ranks: {statuses}")
    trial.expect(not session.traceback, "a traceback on the terminal")


def rank_statuses(output: str) -> list[int]:
    """Those that launch.py has seen; it reports none of a rank that it did not outlive."""
    good = [0] * len(re.findall(r"Process \d+ exits successfully", output))
    return good + [int(code) for code in re.findall(r"exits with return code = (-?\d+)", output)]


def _summary(base: Path) -> dict[str, object]:
    path = base / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _newest(base: Path) -> int:
    whole = checkpoints(base)
    return int(whole[-1].name.removeprefix("step-")) if whole else 0


def _time_limit(work: Workplace, journal: Journal) -> None:
    """A run that would take much longer; the limit must leave room for the save."""
    trial, base = Trial(CATEGORY, f"--time_limit {LIMIT}s"), work.fresh("time-limit")
    with work.session([*work.flags(base, pace=ENDLESS), "--time_limit", f"{LIMIT}s"], "time-limit") as session:
        session.wait_until(lambda: session.processes("rank0"))
        begun = time.time()
        status = session.wait_end()
        seconds = time.time() - begun
        summed_up = (base / "summary.json").stat().st_mtime - begun if (base / "summary.json").is_file() else math.inf
        trial.facts |= {"log": session.log.name, "all written after": summed_up, "command returned after": seconds}
        trial.expect(status == 0, f"exit status {status}")
        trial.expect(summed_up <= LIMIT, f"summary.json was written after {summed_up:.1f} s")
        trial.expect(seconds < LIMIT + STOP_LIMIT, f"the command returned after {seconds:.1f} s")
        trial.expect(session.wait_gone(5) is not None, "a process is left")
        _judge(trial, session, base, 1, orderly=True)
    trial.seconds_to_stop = max(0.0, seconds - LIMIT)
    journal.add(trial)


def _at_once(work: Workplace, journal: Journal) -> None:
    """A second signal in the middle of a step that takes many seconds, and so could not be finished at once."""
    trial = Trial(CATEGORY, f"SIGTERM to the ranks in a long step, again {PATIENT:.0f} s later")
    base = work.fresh("long")
    flags = work.flags(base, *LONG_STEP, "--save_interval", 1, pace=ENDLESS)
    with work.session(flags, "at-once") as session:
        session.wait_until(lambda: (base / "checkpoints" / "latest").is_file())
        time.sleep(1)
        session.send(SIGTERM, "ranks")
        time.sleep(PATIENT)
        trial.expect(len(session.processes("ranks")) == 2, "the first signal did not wait for the end of the step")
        session.send(SIGTERM, "ranks")
        trial.seconds_to_stop = session.wait_gone(STOP_LIMIT)
        said = [line.strip() for line in session.said if "second signal" in line]
        trial.facts = {
            "log": session.log.name,
            "ranks": rank_statuses(session.output),
            "said": said[0] if said else None,
        }
    trial.expect(trial.seconds_to_stop is not None, f"still there after {STOP_LIMIT:.0f} s")
    trial.expect(said, "no line says why it left")
    newest = checkpoints(base)[-1]
    trial.expect(damage(newest) is None, f"{newest.name}: {damage(newest)}")
    trial.expect(not session.traceback, "a traceback on the terminal")
    journal.add(trial)


def checkpoints(run_folder: Path) -> list[Path]:
    """Those with their final name, oldest first."""
    return sorted(path for path in (run_folder / "checkpoints").glob("step-*") if path.suffix != ".partial")
