"""What tests of several folders share: text, tiny runs of train.py, and the processes that they are started in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked import ForkedScript
from hypothesis import settings

from stress.chaos.session import inherited_environment

# Models here are too small to share: threads that wait for a core with other work cost four times what they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("busy", deadline=None)  # a property does not fail because the machine has other work
settings.load_profile("busy")
ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 400  # seconds, against a hang; nothing here takes a minute on a quiet machine
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "max_seq_len": 64,
    "vocab_size": 512,
}
PACE = {
    "max_steps": 12,
    "save_interval": 6,
    "keep_last": 5,
    "log_interval": 1,
    "eval_interval": 3,
    "sample_interval": 6,
}
TINY = [word for name, value in (SIZES | PACE).items() for word in (f"--{name}", str(value))]
FP32 = [
    "--deepspeed_config",
    str(ROOT / "ds_configs" / "t4x2.json"),
    "--set",
    "fp16.enabled=false",
    "train_batch_size=auto",
    "train_micro_batch_size_per_gpu=4",
    "gradient_accumulation_steps=1",
    "optimizer.params.lr=2e-3",
]
ON_CPU = {"DS_ACCELERATOR": "cpu"}  # the same tests with and without a GPU
# Files that share a costly fixture of the session: one worker of pytest-xdist gets them all
TOGETHER = {
    "run": ("test_run.py", "test_multinode.py", "test_two_machines.py", "test_malicious_files.py"),
    "engine": ("test_configs_train.py", "test_configurations.py", "test_engine.py", "test_equivalence.py"),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker of pytest-xdist whole files, in their order, and to one worker those of `TOGETHER`.

    pytest-xdist's own groups do nothing under pytest 9.2, which builds the names of tests anew.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((group for group, files in TOGETHER.items() if Path(file).name in files), file)

    config.option.loadscopereorder = False  # the slow files come first, and end together
    return ByFile(config, log)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """A started process, the head of a group of its own, whose output goes into a file: a pipe could fill up."""

    def __init__(self, command: Sequence[str | Path], folder: Path, environment: dict[str, object]) -> None:
        variables = inherited_environment() | ON_CPU | {name: str(value) for name, value in environment.items()}
        words = [str(word) for word in command]
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self.process: ForkedScript | subprocess.Popen[bytes]
        if words[0] == sys.executable and words[1].endswith((".py", "deepspeed")):
            self.process = ForkedScript(words, folder, variables, Path(self.file.name))
        else:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=self.file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=variables,
            )
        self.pid = self.process.pid
        self.poll, self.wait = self.process.poll, self.process.wait
        self.send_signal, self.kill = self.process.send_signal, self.process.kill

    @property
    def returncode(self) -> int:
        """The exit status of a process that has ended, negative for a signal."""
        status = self.process.returncode
        assert status is not None
        return status

    @property
    def output(self) -> str:
        """All that was printed so far."""
        self.file.seek(0)
        return self.file.read().decode("utf-8", errors="replace")

    def wait_until(self, true: Callable[[], object], what: str) -> None:
        """Wait for something that the process does."""
        started = time.monotonic()
        while not true():
            assert self.poll() is None, f"ended with {self.returncode} before {what}:\n{self.output}"
            assert time.monotonic() - started < PATIENCE, f"no sign of {what}:\n{self.output}"
            time.sleep(0.05)

    def stop_group(self) -> None:
        """End what is left of it and its children."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.wait()


@dataclass(frozen=True)
class Finished:
    """The worst exit status of some processes, and all that they printed."""

    status: int
    output: str


class Processes:
    """Starts commands in `folder`, and sees to it that none outlives its test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, command: Sequence[str | Path], **environment: object) -> Running:
        """One process; `environment` comes on top of the usual variables."""
        return Running(command, self.folder, environment)

    def finish(self, *running: Running) -> Finished:
        """Wait for all."""
        try:
            for process in running:
                process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail("timed out:\n" + "".join(process.output for process in running), pytrace=False)
        finally:
            for process in running:
                process.stop_group()
        return Finished(
            max((process.returncode for process in running), key=abs), "".join(process.output for process in running)
        )

    def start_ranks(self, count: int, script: Sequence[str | Path], **environment: object) -> list[Running]:
        """`count` processes joined as a launcher would, without the ten seconds that it takes to start one."""
        shared = {"WORLD_SIZE": count, "LOCAL_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        return [
            self.start([sys.executable, *script], **shared, RANK=rank, LOCAL_RANK=rank, **environment)
            for rank in range(count)
        ]

    def ranks(self, count: int, script: Sequence[str | Path], **environment: object) -> Finished:
        """`start_ranks`, and wait for them."""
        return self.finish(*self.start_ranks(count, script, **environment))

    def launcher(self, *flags: str, arguments: Sequence[str | Path], forked: bool = True) -> Running:
        """`deepspeed FLAGS train.py ARGUMENTS`, on a port of its own unless the flags name one.

        launch.py and the ranks import everything anew; the `deepspeed` command only if it is not `forked`.
        """
        beside = Path(sys.executable).with_name("deepspeed")
        command = beside if beside.is_file() else Path(shutil.which("deepspeed") or "deepspeed")
        port = () if "--master_port" in flags else ("--master_port", str(_free_port()))
        words = [command, *port, *flags, ROOT / "train.py", *arguments]
        return self.start([sys.executable, *words] if forked else words)


@pytest.fixture(scope="session")
def train_py() -> Path:
    """The script, by a path that is right in any folder."""
    return ROOT / "train.py"


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port of this machine that nobody listens at."""
    return _free_port


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the runs of a session share, with a few hundred stories in it."""
    from sample_stories import generate_stories

    folder = tmp_path_factory.mktemp("workplace")
    lines = (json.dumps({"text": story}, ensure_ascii=False) + "\n" for story in generate_stories(600, seed=7))
    (folder / "stories.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def processes(workplace: Path) -> Processes:
    """Starts commands in `workplace`."""
    return Processes(workplace)


@pytest.fixture(scope="session")
def processes_in() -> type[Processes]:
    """`processes_in(folder)` starts commands in another folder."""
    return Processes


@pytest.fixture(scope="session")
def flags() -> Callable[..., list[str]]:
    """`flags("runs/name", ...)`: what train.py gets for a tiny unchecked run in fp32; later flags win over earlier."""
    return lambda output, *more: [
        "--data",
        "stories.jsonl",
        "--output",
        str(output),
        "--skip_preflight",
        *FP32,
        *TINY,
        *map(str, more),
    ]


@pytest.fixture(scope="session")
def launched(processes: Processes, flags: Callable[..., list[str]]) -> Finished:
    """The output of a whole run through the real launcher; its folder is `finished_run`."""
    done = processes.finish(processes.launcher("--num_gpus", "2", arguments=flags("runs/two")))
    assert done.status == 0, done.output
    return done


@pytest.fixture(scope="session")
def finished_run(launched: Finished, workplace: Path) -> Path:
    """The folder of a run of 12 steps on 2 processes, experts on both. Copy it before you change anything in it."""
    return workplace / "runs" / "two"


class EngineResults:
    """What worker_engine.py found, on 1 process and on 2; each is started when the first test asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[int, dict[str, Any]] = {}

    def __call__(self, processes: int, scenario: str) -> dict[str, Any]:
        """The figures of one scenario; the test fails if the scenario did."""
        if processes not in self.found:
            done = Processes(self.folder).ranks(
                processes,
                [ROOT / "tests" / "workers" / "worker_engine.py", self.folder],
                PYTHONPATH=ROOT,
            )
            file = self.folder / f"{processes}.json"
            self.found[processes] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            self.found[processes]["output"] = {"failed": done.output}
        result = self.found[processes].get(scenario) or self.found[processes]["output"]
        if "failed" in result:
            pytest.fail(f"{scenario} on {processes} processes: {result['failed']}", pytrace=False)
        return result

    def weights(self, processes: int, scenario: str, file: str) -> dict[str, Any]:
        """The weights that a scenario ended with."""
        import torch

        self(processes, scenario)
        return torch.load(self.folder / f"{processes}-{file}.pt")


@pytest.fixture(scope="session")
def engine_results(tmp_path_factory: pytest.TempPathFactory) -> EngineResults:
    """`engine_results(processes, scenario)`."""
    return EngineResults(tmp_path_factory.mktemp("engine"))
