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


def test_functions_win_over_packages_of_their_name() -> None:
    """`dooly.trace`, `simulate` and `validate` are the functions, also once modules inside those packages were imported."""
    code = (
        "import dooly, dooly.trace._model, dooly.simulate._results, dooly.validate._real; from dooly.trace import TracedModel;"
        "print(*(type(f).__name__ for f in (dooly.trace, dooly.simulate, dooly.validate)), dooly.TracedModel is TracedModel)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "function function function True\n"


def test_importing_dooly_is_light() -> None:
    """`import dooly` loads neither torch, nor an engine, nor CatBoost."""
    code = "import sys, dooly; print(*({'torch', 'vllm', 'catboost', 'sympy', 'zarr'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
