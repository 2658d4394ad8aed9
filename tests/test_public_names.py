"""What `import dooly` offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dooly

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(set(dooly.__all__) - {"__version__"}))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    """Each name in `__all__` exists and has a docstring."""
    assert getattr(dooly, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that `dooly` does not have is named in an AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'trail'"):
        dooly.trail  # noqa: B018 - the access is what fails


@pytest.mark.parametrize("name", sorted(dooly.__all__))
def test_no_package_shares_its_name_with_a_public_name(name: str) -> None:
    """A public name is one thing to Python, type checkers and the reference: nothing in the package can shadow it."""
    assert not (ROOT / "dooly" / name).exists()
    assert not (ROOT / "dooly" / f"{name}.py").exists()


def test_importing_dooly_is_light() -> None:
    """`import dooly` loads neither torch, nor an engine, nor CatBoost."""
    code = "import sys, dooly; print(*({'torch', 'vllm', 'catboost', 'sympy', 'zarr'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
