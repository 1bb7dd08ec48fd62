"""What must be the same on every rank, and how two ranks differ in it."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import printable
from evaluation.run_settings import flat
from training.processes.process_group import World, gather_from_ranks

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("common", "corpus", "evaluation", "model", "training")
_LISTED, _SHOWN = 3, 60  # differences in a message, characters of a value
_CODE = "this project's code"
_HINTS = {
    _CODE: "check out the same commit on both, without changes of your own",
    "torch": "install the same version on both",
    "deepspeed": "install the same version on both",
}


@cache
def code_facts() -> dict[str, str]:
    """Return the versions of what computes: a digest of this project's modules, PyTorch and DeepSpeed."""
    digest = hashlib.sha256()
    for path in sorted(path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py")):
        digest.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes())
    versions = {name: metadata.version(name) for name in ("torch", "deepspeed")}
    return {_CODE: digest.hexdigest()[:12], **versions}


def file_digest(path: Path) -> str:
    """Return the first digits of a file's SHA-256; "missing" if it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "missing"


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Return in words how the facts of another rank differ from this one's; empty if they do not."""
    ours, theirs = ({key: str(value) for key, value in flat(facts)} for facts in (here, there))
    found = [
        f"{key} is {_shown(theirs.get(key))} there and {_shown(ours.get(key))} here"
        + (f" ({_HINTS[key]})" if key in _HINTS else "")
        for key in ours | theirs
        if ours.get(key) != theirs.get(key)
    ]
    more = f" (and {len(found) - _LISTED} more)" if len(found) > _LISTED else ""
    return "; ".join(found[:_LISTED]) + more


def _shown(value: str | None) -> str:
    return "not set" if value is None else printable(value, _SHOWN)


def check_agreement(world: World, facts: Mapping[str, Any], hint: str) -> None:
    """Raise UserError on every rank if the facts of one are not those of rank 0; collective.

    `hint` says what to do about it.
    """
    everybody = gather_from_ranks((socket.gethostname(), dict(facts))) if world.size > 1 else []
    for rank, (host, theirs) in enumerate(everybody):
        host0, facts0 = everybody[0]
        if what := difference(facts0, theirs):
            raise UserError(f"rank {rank} on {host} differs from rank 0 on {host0}: {what}: {hint}")
