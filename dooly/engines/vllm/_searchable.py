"""Modules that vLLM can search: one of them claims attributes that it has not."""

from __future__ import annotations

import sys
from typing import Any


def make_searchable() -> None:
    """Let llvmlite, which numba compiles with, lack the attributes of Python's own that it has not.

    A worker of vLLM (0.32) reads the `__dict__` of whatever it finds in any module, to put kernels in place of others. That of
    llvmlite's library is a function of no library, as every name is, and the engine does not start.
    """
    ffi: Any = sys.modules.get("llvmlite.binding.ffi")
    kind: Any = type(getattr(ffi, "lib", None))
    claims = getattr(kind, "__getattr__", None)
    if ffi is None or claims is None or not hasattr(ffi.lib, "__dict__"):
        return

    def look_up(library: object, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return claims(library, name)

    kind.__getattr__ = look_up
