"""What the processor is, and what it multiplies fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.device import cpu_name, native_dtype

if TYPE_CHECKING:
    from pathlib import Path


def test_this_processor_has_a_name() -> None:
    """A name and the number of cores; it is part of every environment."""
    assert " x" in cpu_name()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse avx2", "float32"),
        ("fpu avx2 avx512f avx512_bf16", "bfloat16"),
        ("fpu amx_tile amx_bf16", "bfloat16"),
        ("fp asimd bf16 i8mm", "bfloat16"),
    ],
)
def test_the_fastest_element_type_follows_the_instructions(tmp_path: Path, flags: str, expected: str) -> None:
    """bfloat16 only where the processor has instructions for it, on x86 and Arm."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name: Some Processor\nflags: {flags}\n")
    assert native_dtype(info) == expected


def test_a_system_without_the_file_has_the_safe_type(tmp_path: Path) -> None:
    """Single precision runs well everywhere."""
    assert native_dtype(tmp_path / "none") == "float32"
