"""The optional libraries: imported where they are used, with a sentence where one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from common.errors import UserError

_INSTALL = {
    "gguf": 'pip install "gguf>=0.17,<0.20"',  # requirements-export.txt would compile llama-cpp-python as well
    "llama_cpp": "pip install -r requirements-export.txt (it is compiled, which takes a C++ compiler and 15 minutes)",
}


def library(name: str, purpose: str) -> Any:
    """Return an optional library; UserError with the command that installs it if it is missing."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: llama_cpp without its shared library
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        why = "is not installed" if missing else f"cannot be loaded ({' '.join(str(error).split())[:150]})"
        raise UserError(f"{purpose} needs {name}, which {why}: {_INSTALL[name]}") from None
