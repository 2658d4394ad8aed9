"""What vLLM finds when it searches all modules."""

from __future__ import annotations

import pytest

from dooly.engines.vllm._searchable import make_searchable


def test_a_library_lacks_what_python_alone_has() -> None:
    """Its functions stay, and nothing else is made up; a second time changes nothing."""
    ffi = pytest.importorskip("llvmlite.binding.ffi")
    for _ in range(2):
        make_searchable()
        assert not hasattr(ffi.lib, "__dict__")
        assert callable(ffi.lib.LLVMPY_GetVersionInfo)
