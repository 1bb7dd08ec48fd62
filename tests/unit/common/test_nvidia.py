"""Machines with an NVIDIA GPU that PyTorch cannot use, played by a folder with their /proc and /dev."""

import pytest

from common import nvidia
from common.nvidia import find_driver, why_unusable

MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sat Sep 23 01:15:49 UTC 2023\nGCC version:  gcc 12.2.0\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that makes a machine's files; nvidia-smi is what `smi` says."""

    def make(version=None, devices=(), smi=""):
        (tmp_path / "dev").mkdir()
        for name in devices:
            (tmp_path / "dev" / name).touch()
        if version:
            folder = tmp_path / "proc" / "driver" / "nvidia"
            folder.mkdir(parents=True)
            (folder / "version").write_text(MODULE.format(version))
        monkeypatch.setattr(nvidia, "_version_by_smi", lambda: smi)
        return tmp_path

    return make


def test_a_machine_without_an_nvidia_device_trains_on_the_cpu(machine):
    root = machine(devices=["nvidiactl", "null"])
    assert find_driver(root) is None
    assert why_unusable("2.13.0+cu130", "13.0", {}, root) is None


def test_an_old_driver_is_named_with_the_wheel_that_it_can_run(machine):
    root = machine("535.104.05", ["nvidia0", "nvidia1", "nvidiactl"])
    message = why_unusable("2.13.0+cu130", "13.0", {}, root)
    for part in ("535.104.05", "2.13.0+cu130", "CUDA 13 needs driver 580", "whl/cu126", "DS_ACCELERATOR=cpu"):
        assert part in message
    assert "whl/cu118" in why_unusable("2.6.0+cu124", "12.4", {}, machine_of("470.57.02", root))


def machine_of(version, root):
    (root / "proc" / "driver" / "nvidia" / "version").write_text(MODULE.format(version))
    return root


def test_a_container_without_the_devices_is_told_so(machine):
    message = why_unusable("2.13.0+cu130", "13.0", {}, machine("580.65.06"))
    assert "--gpus all" in message
    assert "needs driver" not in message


def test_a_new_driver_that_does_not_work_is_no_matter_of_versions(machine):
    message = why_unusable("2.13.0+cu126", "12.6", {}, machine("580.65.06", ["nvidia0"]))
    assert "nvidia-smi" in message
    assert "needs driver" not in message


def test_nvidia_smi_alone_is_enough(machine):
    root = machine(smi="551.23")
    assert find_driver(root).version == "551.23"
    assert "551.23" in why_unusable("2.13.0+cu130", "13.0", {}, root)


def test_a_build_for_the_cpu_is_named(machine):
    message = why_unusable("2.13.0+cpu", None, {}, machine("580.65.06", ["nvidia0"]))
    assert "built for the CPU" in message
    assert "whl/cu130" in message


@pytest.mark.parametrize("chosen", [{"DS_ACCELERATOR": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_who_asks_for_the_cpu_gets_it(machine, chosen):
    assert why_unusable("2.13.0+cu130", "13.0", chosen, machine("535.104.05", ["nvidia0"])) is None
