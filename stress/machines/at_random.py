"""Two machines: ranks killed, a machine switched off, the link cut, at random moments; the next start continues."""

from __future__ import annotations

import time
from signal import SIGKILL

from stress.chaos import compare
from stress.chaos.record import Journal, Trial
from stress.chaos.workplace import Workplace
from stress.machines.cases import STOP_LIMIT, machines
from stress.machines.launch import Launch
from stress.machines.two_machines import TwoMachines, missing

CATEGORY = "two machines: kills and cuts"
DEEDS = (
    "kill rank 0",
    "kill rank 1",
    "kill launch.py on mB",
    "switch mB off",
    "cut for good",
    "cut for 20 s",
    "Ctrl-C",
)


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """`trials` deeds at random moments of one run after the other; every next start continues, nothing is left."""
    if missing():
        return
    number, run_folder = 1, work.fresh("random-1")
    deeds = [DEEDS[i % len(DEEDS)] for i in range(trials)]
    work.random.shuffle(deeds)
    pending: tuple[Trial, int] | None = None
    reference = work.reference()
    while deeds or pending:
        with machines() as two:
            launch = Launch(two, work, work.flags(run_folder), f"random-{len(deeds)}")
            target = compare.last_step(run_folder) + work.random.randint(1, 25)
            launch.wait_until(lambda: compare.last_step(run_folder) >= min(target, work.pace.steps))  # noqa: B023
            time.sleep(work.random.uniform(0, 1))
            pending = _settle(journal, work, launch, pending)
            if launch.runner.poll() is not None or compare.last_step(run_folder) >= work.pace.steps:
                trial = Trial(f"{CATEGORY}: finished runs", f"run {number} against the uninterrupted one")
                trial.expect(launch.wait_end() == 0, f"exit status {launch.runner.returncode}: {launch.output[-500:]}")
                pending = _settle(journal, work, launch, pending)  # only now has it said that there is nothing to do
                trial.problems += compare.differences(run_folder, reference) if not trial.problems else []
                journal.add(trial)
                number += 1
                run_folder = work.fresh(f"random-{number}")
                continue
            if not deeds:
                break
            deed = deeds.pop()
            reached = compare.last_step(run_folder)
            trial = Trial(
                CATEGORY, f"{len(journal.trials) + 1}: {deed} at step {reached}", facts={"log": launch.log.name}
            )
            _do(two, launch, deed)
            begun = time.monotonic()
            status = launch.wait_end(STOP_LIMIT)
            free = two.seconds_until_free(STOP_LIMIT)
            trial.seconds_to_stop = None if free is None else time.monotonic() - begun
            trial.facts["exit status"] = status
            trial.expect(status is not None and free is not None, f"still there: {two.training()}")
            pending = trial, max(reached, compare.last_step(run_folder))


def _do(two: TwoMachines, launch: Launch, deed: str) -> None:
    """Do a deed to the run."""
    if deed.startswith("kill"):
        machine = two.a if deed == "kill rank 0" else two.b
        machine.send(SIGKILL, "launch" if "launch" in deed else deed.removeprefix("kill ").replace(" ", ""))
    elif deed == "Ctrl-C":
        launch.interrupt()
    else:
        two.cut()
        if deed == "switch mB off":
            two.b.power_off()
        if deed == "cut for 20 s":
            time.sleep(20)
            two.restore()
            time.sleep(5)
            launch.interrupt()


def _settle(
    journal: Journal, work: Workplace, launch: Launch, pending: tuple[Trial, int] | None
) -> tuple[Trial, int] | None:
    """Judge the last deed by where the next start continues; keep it if this start has not said so."""
    step = work.pace.steps if "has finished its" in launch.output else launch.announced
    if pending is None or step is None:
        return pending
    trial, reached = pending
    trial.facts["continued from"], trial.steps_lost = step, max(0, reached - step)
    trial.expect(trial.steps_lost <= work.pace.save, f"{trial.steps_lost} steps lost ({launch.log.name})")
    journal.add(trial)
    return None
