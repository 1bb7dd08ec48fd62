"""The place of this process among all, as a launcher says it or an earlier job has left it."""

import pytest

from common.errors import UserError
from training.processes.process_group import World


@pytest.fixture
def environment(monkeypatch):
    def give(**values: str) -> World:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return World.from_environment()

    return give


def test_what_launchers_set_is_read(environment):
    assert environment() == environment(RANK="", WORLD_SIZE="") == World(0, 1, 0, 1)
    assert environment(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_SIZE="2") == World(3, 4, 1, 2)
    assert environment(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2") == World(3, 4, 1, 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE in the environment is 'abc' and must be a whole number from 1 to "),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE in the environment is '0'"),
        ({"WORLD_SIZE": "２", "RANK": "0"}, "WORLD_SIZE in the environment is '２'"),
        ({"RANK": "1"}, "RANK in the environment is '1' and must be a whole number from 0 to 0"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK in the environment is '-1' and must be a whole number from 0 to 1"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "2"}, "LOCAL_RANK in the environment is '2'"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_SIZE": "8"}, "LOCAL_SIZE in the environment is '8'"),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2 is set in the environment and RANK is not: start with deepspeed or torchrun",
        ),
    ],
)
def test_what_cannot_be_is_named_before_anything_starts(environment, values, said):
    with pytest.raises(UserError) as error:
        environment(**values)
    assert said in str(error.value) and "unset" in str(error.value)
