"""No compiler where nothing is to be compiled: importing PyTorch's takes a second or more, in every process."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

_NAME = "torch._dynamo"


def leave_compiler_out() -> None:
    """Have nothing compiled in this process from here on.

    PyTorch imports its compiler at the first step of any optimizer, and where an operation on the meta device is
    written in Python, only to ask it for nothing to be done.
    """
    if _NAME not in sys.modules:
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # for the compiler, if something else of it is asked for
        sys.modules[_NAME] = _NoCompiler(_NAME)
        setattr(torch, "_dynamo", sys.modules[_NAME])  # noqa: B010 (the type checker knows the module)
    elif not isinstance(loaded := sys.modules[_NAME], _NoCompiler):
        loaded.config.disable = True


def import_uncompiled(name: str) -> None:
    """Import a module whose functions would be compiled at their first call, as they are."""
    with mock.patch.object(torch, "compile", _as_it_is):
        importlib.import_module(name)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Have modules made with shapes but without memory, to be counted or given weights.

    The values that PyTorch's modules begin with, which nothing here keeps, would be computed there by code that imports
    sympy.
    """
    with torch.device("meta"), _NoStartValues():
        yield


class _NoStartValues(TorchFunctionMode):
    """Leaves tensors as they are where `torch.nn.init` would fill them."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _as_it_is(function: Callable[..., Any] | None = None, *_args: Any, **_options: Any) -> Any:
    """Return the function that a decorator was given, or the decorator where it was given its options first."""
    return function or _as_it_is


class _NoCompiler(ModuleType):
    """Stands in for `torch._dynamo` until anything is asked that it cannot answer: then it is the real one."""

    disable = staticmethod(_as_it_is)
    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)  # when a process group is formed

    @staticmethod
    def graph_break(*_args: Any, **_more: Any) -> None:
        """Do nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the compiler, imported here; it reads the environment, and compiles nothing.

        `inspect` asks every module for its `__file__`, perhaps in the middle of an import that the compiler needs
        itself; only `__path__` is asked by who wants a part of it.
        """
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        return getattr(importlib.import_module(_NAME), name)
