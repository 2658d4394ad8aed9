"""Trace in a process of its own, which stand-ins need for themselves: for a GPU, and for modules that this machine lacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly import errors
from dooly.engines._config import ModelSource, ServingConfig
from dooly.engines._targets import find_target
from dooly.errors import DoolyError, EngineError
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from dooly.engines._targets import Target

_THERE = "from dooly.engines.vllm._elsewhere import answer_here; answer_here()"


def needs_image_functions(model: ModelSource) -> bool:
    """Tell whether a model's code imports image functions that are not installed: text needs none of them."""
    return "vision_config" in model.config and find_spec("torchvision") is None


def trace_elsewhere(model: ModelSource, serving: ServingConfig, pipeline_rank: int, target: Target | None) -> TracedModel:
    """Return what `trace_here` gives on a machine with the target; for None, with the device at hand.

    Raises:
        DoolyError: What it raises there.
        EngineError: The other process ended without an answer, or was killed.
    """
    alone = replace(serving, speculative_config=None, kv_policy=None)  # neither is in a model's trace
    asked = {"name": model.name, "folder": str(model.folder), "serving": asdict(alone), "rank": pipeline_rank}
    asked |= {"target": target and target.name}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-c", _THERE, json.dumps(asked), str(answer)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - Python itself
        if not answer.is_file():
            raise _no_answer(model.name, run)
        found = json.loads(answer.read_text())
    if "error" in found:
        raise getattr(errors, found["error"])(found["message"])
    return TracedModel.from_json(found["traced"])


def _no_answer(name: str, run: subprocess.CompletedProcess[str]) -> EngineError:
    """Return the error for a process that left no answer: killed from outside, or ended by itself."""
    if run.returncode < 0:
        return EngineError(
            f"{name}: the process that traces it was killed by signal {-run.returncode}"
            f"{' (out of memory?)' if run.returncode == -signal.SIGKILL else ''}; free memory, and trace again"
        )
    lines = [line for line in run.stderr.splitlines() if line.strip()] or ["no reason given"]
    return EngineError(
        f"{name}: the process that traces it ended with code {run.returncode}: {lines[-1]}; see whether memory is short, "
        "and trace again"
    )


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a trace in this process, made one with the target first, or the error."""
    from dooly.engines.vllm._model import trace_here
    from dooly.engines.vllm._platform import stand_in

    try:
        stand_in(asked["target"] and find_target(asked["target"]))
        model, serving = ModelSource(asked["name"], Path(asked["folder"])), ServingConfig(**asked["serving"])
        return {"traced": trace_here(model, serving, asked["rank"]).to_json()}
    except DoolyError as error:
        return {"error": type(error).__name__, "message": str(error)}


def answer_here() -> None:
    """Trace what the command line asks for, and write the answer to the file that it names."""
    asked, file = sys.argv[1:]
    # Written whole: a process that dies leaves no half an answer.
    text = json.dumps(_answer(json.loads(asked)))
    Path(file).write_text(text)
