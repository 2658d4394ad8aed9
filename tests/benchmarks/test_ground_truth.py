"""Keeping the real engine's runs, and what all benchmarks import."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
INSIDE = {"block_products", "cross_model", "measured_grid", "profiling_cost", "profiling_replayed", "profiling_sweeps"}
"""Those that judge what families know one by one, or draw as a profile does without an engine, which nothing public does."""


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import_public_names_only(script: Path) -> None:
    """A benchmark uses what a package offers, not its private modules, but for those of families that it judges."""
    imports = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    private = [node.module for node in imports if any(part.startswith("_") for part in (node.module or "").split("."))]
    allowed = ("dooly.predict.", "dooly.imports.", "dooly.measure.") if script.stem in INSIDE else ()
    assert [name for name in private if name and name != "__future__" and not name.startswith(allowed)] == []


@pytest.fixture
def ground_truth(load_script: Callable[[str], Any]) -> ModuleType:
    """The script as a module."""
    module: ModuleType = load_script("benchmarks/ground_truth.py")
    return module


@pytest.mark.engine
def test_the_engine_is_closed_when_a_run_fails(ground_truth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that cannot be served ends the script with its error, and the engine is closed before."""
    closed = []

    class Engine:
        """An engine that serves nothing."""

        def close(self) -> None:
            """Note that it was closed."""
            closed.append(self)

    monkeypatch.setattr(ground_truth, "start", lambda *_: Engine())
    load = "light=poisson:rate=2,requests=2,prompt=8,output=2,seed=1"
    monkeypatch.setattr(sys, "argv", ["ground_truth.py", "smollm2-135m", "--out", str(tmp_path), "--load", load])
    with pytest.raises(AttributeError, match="prompt"):
        ground_truth.main()
    assert len(closed) == 1


@pytest.mark.engine
def test_the_engine_chooses_its_model_runner_by_itself(ground_truth: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In default mode Dooly's choice of the model runner is still out of the way when the engine starts."""
    from dooly.engines import ServingConfig, find_model
    from dooly.engines.vllm import _version
    from dooly.engines.vllm._config import engine_arguments
    from dooly.engines.vllm._version import MODEL_RUNNER

    seen = []

    def starts(model: object, serving: object, **settings: object) -> None:
        engine_arguments(model, serving, **settings)  # type: ignore[arg-type]
        seen.append(os.environ.get(MODEL_RUNNER))

    monkeypatch.setenv(MODEL_RUNNER, "0")
    monkeypatch.setitem(_version._ENVIRONMENT, MODEL_RUNNER, "0")  # so that it is there again afterwards
    monkeypatch.setattr(ground_truth, "start_engine", starts)
    ground_truth.start(find_model("smollm2-135m"), ServingConfig(), "default")
    assert seen == [None]
