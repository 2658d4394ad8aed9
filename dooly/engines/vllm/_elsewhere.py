"""Trace for a GPU that this machine lacks: in a process of its own, which vLLM's stand-in platform needs for itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly import errors
from dooly.engines._config import ModelSource, ServingConfig
from dooly.engines._targets import find_target
from dooly.errors import DoolyError, EngineError
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from dooly.engines._targets import Target


def trace_elsewhere(model: ModelSource, serving: ServingConfig, pipeline_rank: int, target: Target) -> TracedModel:
    """Return what `trace_vllm_model` gives on a machine with the target.

    Raises:
        DoolyError: What it raises there.
        EngineError: The other process ended without an answer.
    """
    asked = {"name": model.name, "folder": str(model.folder), "serving": asdict(serving), "rank": pipeline_rank}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", __name__, json.dumps(asked | {"target": target.name}), str(answer)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - this module
        if not answer.is_file():
            lines = [line for line in run.stderr.splitlines() if line.strip()] or ["no reason given"]
            raise EngineError(
                f"{model.name}: the process that traces for {target.name} ended with code {run.returncode}: {lines[-1]}; "
                "see whether memory is short, and trace again"
            )
        found = json.loads(answer.read_text())
    if "error" in found:
        raise getattr(errors, found["error"])(found["message"])
    return TracedModel.from_json(found["traced"])


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a trace in this process, made one with the target first, or the error."""
    from dooly.engines.vllm._model import trace_vllm_model
    from dooly.engines.vllm._platform import stand_in

    try:
        stand_in(find_target(asked["target"]))
        model, serving = ModelSource(asked["name"], Path(asked["folder"])), ServingConfig(**asked["serving"])
        return {"traced": trace_vllm_model(model, serving, pipeline_rank=asked["rank"]).to_json()}
    except DoolyError as error:
        if os.environ.get("DOOLY_DEBUG"):
            raise
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    # Written whole: a process that dies leaves no half an answer.
    text = json.dumps(_answer(json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(text)
