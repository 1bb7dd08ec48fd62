"""Quick forms of `python -m stress.fuzz`: the same cases, invented by hypothesis, the same ones every time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from stress.fuzz.guard import Guard
from stress.fuzz.targets import TARGETS, build

SECONDS = 20  # for a case; the usual one takes 10 ms


@pytest.fixture(scope="session")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    """One for the session: an audit hook stays for ever."""
    return Guard(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module", params=TARGETS)
def case(request: pytest.FixtureRequest) -> Any:
    """Each target in turn."""
    return build(request.param)


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    """What hangs is interrupted; the guard takes the interruption for a finding."""

    def ring(*_: object) -> None:
        raise TimeoutError("the case hangs")

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def judge(guard: Guard, case: Any, data: bytes) -> str:
    """The kind of the outcome; the test fails at a finding."""
    signal.alarm(SECONDS)
    outcome = guard.run(case, data)
    signal.alarm(0)
    assert outcome.kind != "finding", f"{outcome.label}\n{outcome.details}"
    return outcome.kind


def test_seeds_bring_success_and_refusal(guard: Guard, case: Any) -> None:
    kinds = {judge(guard, case, data) for data in case.seeds()}
    assert "fine" in kinds


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.binary(min_size=20, max_size=600))
def test_nothing_but_success_or_a_sentence(guard: Guard, case: Any, data: bytes) -> None:
    judge(guard, case, data)


@pytest.mark.parametrize(
    ("does", "found"),
    [
        (lambda folder, outside: 1 // 0, "ZeroDivisionError"),
        (lambda folder, outside: (_ for _ in ()).throw(SystemExit(1)), "SystemExit"),
        (lambda folder, outside: outside.read_text(), "outside of the folder was read"),
        (lambda folder, outside: (folder.parent / "x").write_text(""), "outside of the folder was opened to write"),
        (lambda folder, outside: (folder.parent / "y").mkdir(), "os.mkdir outside"),
        (lambda folder, outside: (folder / "link").symlink_to(outside) or (folder / "link").read_text(), "was read"),
        (lambda folder, outside: refuse("x" * 10_000), "long message"),
        (lambda folder, outside: refuse(" \n"), "no message"),
        (lambda folder, outside: __import__("os").system("true"), "os.system"),
    ],
)
def test_the_guard_sees(guard: Guard, does: Any, found: str) -> None:
    outcome = guard.run(lambda choices, folder, outside: str(does(folder, outside)), b"")
    assert outcome.kind == "finding" and found in outcome.label


def refuse(message: str) -> None:
    raise UserError(message)


def test_the_guard_lets_pass_what_is_the_cases_own(guard: Guard) -> None:
    def writes(choices: Any, folder: Path, outside: Path) -> str:
        (folder / "a").mkdir()
        (folder / "a" / "b").write_text("c")
        (folder / "a").rename(folder / "d")
        return "written"

    assert guard.run(writes, b"").kind == "fine"
    assert guard.run(lambda *_: refuse("data.jsonl:3: broken JSON; mend it"), b"").kind == "refused"
