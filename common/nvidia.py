"""An NVIDIA GPU that PyTorch cannot use, told apart from a machine without one."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MODULE = Path("/proc/driver/nvidia/version")  # of the kernel's module, which containers see, too
_LEAST_DRIVERS = {13: 580, 12: 525, 11: 450}  # NVIDIA's "minor version compatibility": for any 13.x, 12.x, 11.x
_WHEELS = {13: "cu130", 12: "cu126", 11: "cu118"}
_HIDDEN = ("", "-1", "none", "NoDevFiles")  # what CUDA_VISIBLE_DEVICES hides all GPUs with


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of this machine; `has_devices` says whether /dev has a GPU for this process."""

    version: str
    has_devices: bool


def find_driver(root: Path = Path("/")) -> Driver | None:
    """Return the driver by /proc/driver/nvidia, /dev/nvidia0, ... and nvidia-smi; None if no NVIDIA device is here."""
    devices = any(re.fullmatch(r"nvidia\d+", path.name) for path in (root / "dev").glob("nvidia*"))
    module = root / _MODULE.relative_to("/")
    text = module.read_text(encoding="utf-8", errors="replace") if module.is_file() else ""
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    if found or devices:
        return Driver(found[0] if found else _version_by_smi(), devices)
    version = _version_by_smi()  # under WSL there are neither
    return Driver(version, True) if version else None


def _version_by_smi() -> str:
    """Return what nvidia-smi says; empty if it is missing or finds no GPU."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.match(r"\s*(\d+\.\d+(\.\d+)?)\s*$", output.partition("\n")[0])
    return found[1] if found else ""


def why_unusable(
    torch_version: str, built_for: str | None, environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> str | None:
    """Return why this PyTorch, which sees no GPU, cannot use the machine's, and what to do; None if there is none.

    `built_for` is `torch.version.cuda`. A user who hides the GPUs (CUDA_VISIBLE_DEVICES) or asks for the CPU
    (DS_ACCELERATOR=cpu) is not asked again.
    """
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "all") in _HIDDEN
    if hidden or environment.get("DS_ACCELERATOR") == "cpu" or (driver := find_driver(root)) is None:
        return None
    named = f"an NVIDIA GPU with driver {driver.version}" if driver.version else "an NVIDIA GPU"
    series = int(driver.version.partition(".")[0] or 0)
    if built_for is None:
        what, hint = f"this PyTorch ({torch_version}) is built for the CPU alone", _install(series)
        return f"this machine has {named}, but {what}: {hint}"
    least = _LEAST_DRIVERS.get(int(built_for.partition(".")[0]), 0)
    build = f"this PyTorch ({torch_version}, built for CUDA {built_for}) cannot use it"
    if not driver.has_devices:
        fix = "there is no /dev/nvidia0 here: in a container, start it with --gpus all (docker) or --nv (apptainer)"
    elif series and series < least:
        build = f"{build}: CUDA {built_for.partition('.')[0]} needs driver {least} or later"
        fix = f"update the driver, or {_install(series)}"
    else:
        fix = f"check that nvidia-smi works here and restart the machine after a driver update, or {_install(series)}"
    return f"this machine has {named}, but {build}; {fix}; DS_ACCELERATOR=cpu in the environment trains on the CPU"


def _install(series: int) -> str:
    """Return the wheel for a driver; the one for CUDA 12 where that is not known."""
    newest = next((cuda for cuda, least in _LEAST_DRIVERS.items() if series >= least), None)
    if series and newest is None:
        return "update the driver: PyTorch has no wheel for one as old as this"
    return f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{_WHEELS[newest or 12]}"
