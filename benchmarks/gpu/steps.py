"""The steps of `benchmarks.gpu.check`, in their order. Each yields the lines of what it finds, one after the other.

The seconds are planned for a T4 with a slow host.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu import sessions
from benchmarks.gpu.bench import MICRO, QUIET, SEQ_LEN, Bench, Failed, batch, install, python_version
from benchmarks.gpu.table import FAILED, OK, RAN, WARNED, Line, by_kind
from benchmarks.gpu.watched import Watch
from common.files import read_json_lines

STORIES = 6_000  # enough for 6,400 entries
WITHIN = 0.15  # of what --plan says, as it promises
FIRST_APART, MOST_APART = 0.005, 0.1
"""Nats between the GPU's and the CPU's loss: at the first step, at any. fp16 and fp32 on one CPU: 0.000002 and 0.02."""
STEPS_COMPARED, STEPS_RESUMED, STEPS_TIMED = 60, 5, 6
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 64,
    "max_seq_len": 128,
}
"""Of the network that a CPU trains in fp16 as well, which most CPUs only emulate."""
BF16 = "fp16.enabled=false", "bf16.enabled=true"
Lines = Iterator[Line]


def installed(bench: Bench) -> Lines:
    """Install offline, if a folder of wheels is given."""
    if bench.wheels:
        yield Line("install", OK, install(bench))


def self_check(bench: Bench) -> Lines:
    """Compare every fused kernel with its plain form, both ways, at odd sizes and at the run's."""
    out = bench.work / "self_check.json"
    words = ["-m", "benchmarks.gpu.self_check", out, MICRO * SEQ_LEN, int(bench.null_driver)]
    bench.python("self_check", words)
    found = json.loads(out.read_text(encoding="utf-8"))
    bench.machine |= found
    versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "deepspeed", "triton", "driver") if found[name])
    verdict = OK if found["gpus"] else FAILED
    yield Line("machine", verdict, f"{found['summary']}; Python {python_version()}, {versions}", found)
    for precision in ("fp16", "bf16"):
        for kernel in found.get(precision, ()):
            yield _kernel(bench, precision, kernel)


def _kernel(bench: Bench, precision: str, kernel: dict[str, Any]) -> Line:
    name = f"{kernel['name']}, {precision}"
    if why := kernel.get("problem"):
        return Line(name, FAILED, f"does not run: {why}", kernel)
    apart = f"largest error {kernel['apart']:.2f} of what is allowed"
    ms = f"{kernel['plain_ms']:.3f} ms plain, {kernel['fused_ms']:.3f} fused"
    found = f"compiled and ran both ways; error and speed {bench.figure(f'{apart}, {ms}')}"
    if not bench.null_driver:
        found = f"{apart}, {ms}"
    slower = kernel["fused_ms"] > kernel["plain_ms"]
    verdict = bench.judged(kernel["apart"] <= 1)
    return Line(name, WARNED if verdict == OK and slower else verdict, found, kernel)


def data(bench: Bench) -> Lines:
    """Prepare sample stories, with as many entries in the vocabulary as the default model has."""
    if bench.data:
        yield Line("data", OK, f"given: {bench.data}")
        return
    from sample_stories import write_sample_corpus

    stories, folder = bench.work / "stories.jsonl", bench.work / "data"
    write_sample_corpus(stories, STORIES)
    bench.python("data", ["prepare.py", "--input", stories, "--output", folder, "--vocab_size", 6400])
    bench.data = folder
    made = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    tokens = made["splits"]["train"]["tokens"]
    yield Line("data", OK, f"{STORIES:,} stories, {tokens:,} tokens, {made['vocab_size']:,} entries")


def preflight(bench: Bench) -> Lines:
    """Run every check of the preflight in fp16, with attention as a T4 has it."""
    flags = [*batch(bench.processes, MICRO, 2), "--max_steps", 100, "--preflight"]
    session = bench.train("preflight", *flags, watch=Watch(t4_attention=True), must_end=False)
    report = session.run / "preflight.json"
    if not report.is_file():
        raise Failed(session.problem or "no preflight.json")
    checks = json.loads(report.read_text(encoding="utf-8"))["checks"]
    count = {level: sum(check["level"] == level for check in checks) for level in ("pass", "warn", "fail")}
    counted = f"{len(checks)} checks: {count['pass']} passed, {count['warn']} warned, {count['fail']} failed"
    verdict = bench.judged(not count["fail"] and not session.problem)
    text = f"{len(checks)} checks ran; verdicts {bench.figure(counted)}" if bench.null_driver else counted
    yield Line("preflight, fp16", verdict, text, {"checks": checks})
    for check in checks:
        if check["id"] == "memory" or (check["level"] != "pass" and not bench.null_driver):
            verdict = {"pass": OK, "warn": WARNED, "fail": FAILED}[check["level"]]
            yield Line(f"preflight: {check['id']}", verdict, check["text"])


def compared(bench: Bench) -> Lines:
    """Train a small network on the GPU and on the CPU, in fp16 with one seed; compare the loss of every step."""
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", value)]
    flags = [*sizes, *batch(1, 2, 2, "optimizer.params.lr=2e-3"), "--max_steps", STEPS_COMPARED, *QUIET]
    flags += ["--skip_preflight"]
    run = bench.work / "cpu" / "run"
    run.parent.mkdir()
    words = ["tests/workers/cpu_fp16.py", "--deepspeed_config", "ds_configs/t4x1.json", "--data", bench.data, *flags]
    cpu = sessions.start([*words, "--output", run], run.parent / "rank0.txt", {"DS_ACCELERATOR": "cpu"})
    try:
        session = bench.train("gpu", *flags, watch=Watch(t4_attention=True), processes=1)
        sessions.wait([cpu], max(1.0, bench.left - 5.0))  # what it has trained by then is compared
    finally:
        sessions.wait([cpu], 0.0)
    ours, theirs = ({row["step"]: row["loss"] for row in _trained(folder)} for folder in (session.run, run))
    yield _compared(bench, [(step, ours[step], theirs[step]) for step in ours if step in theirs])


def _compared(bench: Bench, losses: list[tuple[int, float, float]]) -> Line:
    """Judge the losses of the same steps, (step, GPU's, CPU's)."""
    name = "fp16 beside the CPU's"
    if not losses:
        return Line(name, FAILED, "no step that both have trained")
    apart = {step: abs(gpu - cpu) if math.isfinite(gpu - cpu) else math.inf for step, gpu, cpu in losses}
    worst = max(apart, key=lambda step: apart[step])
    first, (last, gpu, cpu) = apart[losses[0][0]], losses[-1]
    text = f"{first:.6f} nats apart at the first step, at most {apart[worst]:.4f} (step {worst}), "
    text += f"step {last}: {gpu:.4f} and {cpu:.4f}"
    verdict = bench.judged(first <= FIRST_APART and apart[worst] <= MOST_APART)
    found = f"{len(losses)} of {STEPS_COMPARED} steps in both; equality {bench.figure('')}"
    return Line(name, verdict, found if bench.null_driver else f"{len(losses)} steps: {text}", {"losses": losses})


def resumed(bench: Bench) -> Lines:
    """Kill a run inside a step, continue it, and compare it with one that nobody killed, bit for bit."""
    pace = ["--save_interval", 3, "--eval_interval", 2, "--sample_interval", 1000, "--log_interval", 1]
    flags = [*batch(bench.processes, MICRO // 2, 2), "--max_steps", STEPS_RESUMED, "--skip_preflight", *pace]
    reference = bench.train("uninterrupted", *flags)
    killed = Watch(signal="SIGKILL", signal_step=STEPS_RESUMED)
    first = bench.train("resumed", *flags, watch=killed, must_end=False)
    if not (first.folder / "rank0.signalled").is_file():
        raise Failed(f"it ended before it could be killed: {first.problem}")
    yield Line("killed inside a step", OK, f"step {STEPS_RESUMED}, after a checkpoint at step 3")
    second = bench.train("resumed", *flags)
    if "(step 3)" not in second.said:
        raise Failed(f"the same command did not continue it from step 3 ({second.folder}/rank0.txt)")
    from stress.chaos.compare import MODEL, differences

    size = (second.run / MODEL).stat().st_size / 2**20
    apart = differences(second.run, reference.run)
    same = f"weights ({size:.0f} MiB), curves and samples are those of the uninterrupted run, bit for bit"
    text = f"it continued and ended; equality {bench.figure('')}" if bench.null_driver else "; ".join(apart) or same
    yield Line("continued", bench.judged(not apart), text, {"differences": apart})


def memory(bench: Bench) -> Lines:
    """Compare what training allocates and reserves with what `--plan` says of it."""
    for micro in (MICRO, 2 * MICRO, 3 * MICRO):
        flags = batch(bench.processes, micro, 2)
        plan = bench.plan(f"plan-{micro}", *flags)
        steps = STEPS_TIMED if micro == MICRO else 3
        more = ["--max_steps", steps, "--skip_preflight", *QUIET, "--log_interval", STEPS_TIMED - 1]
        try:
            session = bench.train(f"auto-fp16-{micro}", *flags, *more)
            planned = bench.planned(f"plan-{micro}", plan)
        except Failed as error:
            yield Line(f"memory, micro-batch {micro}", FAILED, str(error))
            continue
        finally:
            sessions.wait([plan], 0.0)
        yield _memory(f"memory, micro-batch {micro}", session, planned)


def _memory(name: str, session: sessions.Session, planned: float) -> Line:
    allocated, reserved = session.most("allocated"), session.most("reserved") + session.most("outside")
    off = reserved / planned - 1
    text = f"{allocated:.2f} GiB allocated, {reserved:.2f} reserved with the context; --plan says {planned:.2f} "
    text += f"({off:+.0%})"
    figures = {"allocated": allocated, "reserved": reserved, "plan": planned, "retries": session.figures[0]["retries"]}
    return Line(name, OK if abs(off) <= WITHIN else FAILED, text, figures)


def speed(bench: Bench) -> Lines:
    """Measure tokens a second and utilisation, with the fused kernels and without."""
    for precision in ("fp16", "bf16"):
        if precision == "bf16" and not bench.machine.get("bf16_fast"):
            yield Line("speed, bf16", OK, "this GPU has no bf16: train.py refuses it")
            continue
        try:
            plain, auto = (_speed(bench, precision, kernels) for kernels in ("plain", "auto"))
        except Failed as error:
            yield Line(f"speed, {precision}", FAILED, str(error))
            continue
        text = f"--kernels plain {_said(plain)}, auto {_said(auto)}, {auto[0] / plain[0]:.2f} times as fast"
        text = f"both trained; tokens/s {bench.figure('')}" if bench.null_driver else text
        figures = {"plain": plain, "auto": auto}
        yield Line(f"speed, {precision}", bench.judged(auto[0] >= 0.98 * plain[0]), text, figures)


def _speed(bench: Bench, precision: str, kernels: str) -> tuple[float, float | None]:
    """Return tokens a second and utilisation; of fp16 with fused kernels, those of the session of `memory`."""
    name = f"{kernels}-{precision}-{MICRO}"
    run = bench.work / name / "run"
    if not (run / "summary.json").is_file():
        flags = batch(bench.processes, MICRO, 2, *(BF16 if precision == "bf16" else ()))
        more = ["--max_steps", STEPS_TIMED, "--skip_preflight", *QUIET, "--log_interval", STEPS_TIMED - 1]
        run = bench.train(name, *flags, "--kernels", kernels, *more).run
    line = next(row for row in _trained(run) if row["step"] == STEPS_TIMED - 1)  # of all steps but the first
    return line["tokens_per_second"], line["model_flops_utilisation"]


def _said(speed: tuple[float, float | None]) -> str:
    tokens, utilisation = speed
    return f"{tokens:,.0f} tokens/s" + ("" if utilisation is None else f" ({utilisation:.1%} of the datasheet's peak)")


def profile(bench: Bench) -> Lines:
    """Time the kernels of a step by name, and count the host's waits."""
    flags = [*batch(bench.processes, MICRO, 2), "--max_steps", 4, "--skip_preflight", *QUIET]
    session = bench.train("profile", *flags, watch=Watch(waits=True, kernels=True))
    waits, kernels = session.figures[0]["waits"], session.figures[0]["kernels"]
    yield Line("waits of a step", OK, f"{sum(waits.values())}, the most by {next(iter(waits), 'none')}", waits)
    if not kernels:
        yield Line("kernels of a step", bench.judged(False), bench.figure("the driver lets nobody trace kernels"))
        return
    kinds, total = by_kind(kernels), sum(kernel["ms"] for kernel in kernels)
    shares = ", ".join(f"{kind} {ms / total:.0%}" for kind, ms in kinds.items())
    launches = sum(kernel["calls"] for kernel in kernels)
    yield Line("kernels of a step", OK, f"{total:.1f} ms in {launches:,} launches: {shares}", {"kernels": kernels})
    for kernel in kernels[:5]:
        yield Line("kernel", OK, f"{kernel['ms']:.1f} ms in {kernel['calls']:,} launches: {kernel['name'][:80]}")


def muon(bench: Bench) -> Lines:
    """Train 30 steps with Muon, whose iteration runs in fp16 on a T4."""
    config, flags = bench.config(bench.processes, "_fast"), batch(bench.processes, MICRO // 2, 1)
    plan = bench.plan("plan-muon", *flags, config=config)
    try:
        session = bench.train("muon", *flags, "--max_steps", 30, "--skip_preflight", *QUIET, config=config)
        planned = bench.planned("plan-muon", plan)
    finally:
        sessions.wait([plan], 0.0)
    rows = _trained(session.run)
    first, last, skipped = rows[0]["loss"], rows[-1]["loss"], rows[-1]["skipped_steps"]
    changed = statistics.median(row["unchanged"] for row in rows[-5:])
    text = f"loss {first:.3f} -> {last:.3f}, {skipped} steps skipped, {1 - changed:.0%} of the weights move in a step"
    good = last < first - 1 and skipped < 10
    text = f"{len(rows)} steps; the loss {bench.figure('')}" if bench.null_driver else text
    yield Line("Muon, 30 steps", bench.judged(good), text, {"losses": [row["loss"] for row in rows]})
    yield _memory("Muon, memory", session, planned)


def stopped(bench: Bench) -> Lines:
    """Send SIGTERM inside a step: the step is finished and saved."""
    flags = [*batch(bench.processes, MICRO // 2, 4), "--max_steps", 100, "--skip_preflight", *QUIET]
    session = bench.train("sigterm", *flags, watch=Watch(signal="SIGTERM", signal_step=3))
    summary = json.loads((session.run / "summary.json").read_text(encoding="utf-8"))
    saved = sorted(path.name for path in (session.run / "checkpoints").glob("step-*"))
    text = f'status 0 {session.seconds_after_signal:.1f} s after the signal; "{summary["reason"]}", '
    text += f"{summary['steps']} steps, saved as {', '.join(saved)}"
    yield Line("SIGTERM inside a step", OK if summary["steps"] == 3 and saved else FAILED, text)


def tune(bench: Bench) -> Lines:
    """Let `--tune` choose."""
    minutes, config = round(0.75 * bench.stretch, 2), bench.config(bench.processes)
    session = bench.train("tune", *batch(bench.processes, MICRO, 4), "--tune", minutes, config=config, processes=1)
    report = json.loads((session.run / "tune.json").read_text(encoding="utf-8"))
    trials = [trial for trial in report["trials"] if trial["tokens_per_second"]]
    sizes = ", ".join(f"{t['micro_batch']} rows {t['peak_gib']:.2f} GiB" for t in trials)
    fastest = max(trials, key=lambda trial: trial["tokens_per_second"])
    speeds = f"{trials[0]['tokens_per_second']:,.0f} tokens/s as it is, at most {fastest['tokens_per_second']:,.0f} "
    speeds += f"with {report['changes'] or 'no change'}"
    text = f"{len(trials)} of {len(report['trials'])} trials measured ({sizes}); {bench.figure(speeds)}"
    yield Line("--tune", bench.judged(bool(report["best"])), text, report)


def _trained(run: Any) -> list[dict[str, Any]]:
    """Return the training lines of a run's metrics."""
    return [row for row in read_json_lines(run / "metrics.jsonl") if row["split"] == "train"]


@dataclass(frozen=True)
class Step:
    """A step and the seconds that it is planned to take."""

    take: Callable[[Bench], Lines]
    seconds: float

    @property
    def name(self) -> str:
        """Its name for --only."""
        return self.take.__name__


STEPS = (
    Step(installed, 20),
    Step(self_check, 50),
    Step(data, 20),
    Step(preflight, 45),
    Step(compared, 60),
    Step(resumed, 80),
    Step(memory, 80),
    Step(speed, 35),
    Step(profile, 25),
    Step(muon, 30),
    Step(stopped, 25),
    Step(tune, 60),
)
__all__ = ["RAN", "STEPS", "Step"]
