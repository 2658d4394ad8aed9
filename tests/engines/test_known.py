from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from dooly.engines import ModelSource, ServingConfig
from dooly.engines.vllm._known import check_known
from dooly.errors import UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine

_REFUSE = """
import sys
from dooly.cli._app import main

print(main(["trace", sys.argv[1]]), "torch" in sys.modules, "vllm" in sys.modules)
"""


def _model(folder: Path, **changes: Any) -> ModelSource:  # noqa: ANN401 - JSON
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **changes}))
    return ModelSource("made-up", folder)


@pytest.mark.parametrize(
    ("changes", "quantization", "message"),
    [
        ({"architectures": ["NoSuchForCausalLM"]}, None, "vLLM registers no architecture NoSuchForCausalLM; see whether a "),
        ({"quantization_config": {"quant_method": "fp9"}}, None, "quantization_config: quant_method: vLLM has no method 'fp9'; "),
        ({}, "fp9", "--quantization: vLLM has no method 'fp9'; correct it$"),
    ],
    ids=["architecture", "method", "flag"],
)
def test_names_that_vllm_lacks_are_refused(
    tmp_path: Path, changes: dict[str, Any], quantization: str | None, message: str
) -> None:
    """An architecture, and a method of quantisation in the file or as a flag, are one line with the name."""
    with pytest.raises(UnsupportedModelError, match=f"^made-up: {message}"):
        check_known(_model(tmp_path, **changes), ServingConfig(quantization=quantization))


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["Olmo2ForCausalLM"]},
        {"quantization_config": {"quant_method": "compressed_tensors"}},
        {"quantization_config": {"quant_method": "modelopt"}},
    ],
    ids=["an architecture of Transformers", "a method by its library's name", "a method"],
)
def test_names_that_vllm_takes_pass(tmp_path: Path, changes: dict[str, Any]) -> None:
    """What vLLM takes from Transformers, and methods in either spelling, are known."""
    check_known(_model(tmp_path, **changes), ServingConfig())


def test_a_refusal_loads_nothing(tmp_path: Path) -> None:
    """Neither torch nor the engine is loaded to say that an architecture is unknown."""
    _model(tmp_path, architectures=["NoSuchForCausalLM"])
    run = subprocess.run([sys.executable, "-c", _REFUSE, str(tmp_path)], check=True, capture_output=True, text=True)
    assert run.stdout == "2 False False\n"
    assert run.stderr.count("\n") == 1
