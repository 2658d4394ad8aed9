"""The version of a trace: the code that made it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dooly.catalog._trace_version import trace_version

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the code, elsewhere."""
    for package in ("passes", "dooly"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("data", "models", "__pycache__"))
    return tmp_path


def test_equal_code_has_one_version(copy: Path) -> None:
    """Where the packages lie does not matter, nor what has nothing to do with tracing."""
    (copy / "dooly" / "simulation" / "_simulator.py").write_text("# another simulator\n")
    assert trace_version(copy) == trace_version()
    assert len(trace_version()) == 32


@pytest.mark.parametrize(
    "file",
    [
        "passes/canonical.py",
        "dooly/tracing/_table.py",
        "dooly/engines/_state_costs.py",
        "dooly/engines/vllm/_stateful.py",
        "dooly/catalog/_points.py",
        "dooly/catalog/_table.py",
    ],
)
def test_a_change_of_what_traces_is_another_version(copy: Path, file: str) -> None:
    """No one needs to remember to count up."""
    with (copy / file).open("a") as source:
        source.write("# changed\n")
    assert trace_version(copy) != trace_version()


def test_a_new_or_renamed_file_is_another_version(copy: Path) -> None:
    """A pass more is another trace, whatever is in it, and so is one that goes by another name."""
    (copy / "passes" / "one_more.py").write_text("")
    more = trace_version(copy)
    (copy / "passes" / "one_more.py").rename(copy / "passes" / "other.py")
    trace_version.cache_clear()
    assert len({trace_version(), more, trace_version(copy)}) == 3
