from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from dooly.engines import ModelSource, ServingConfig
from dooly.engines._targets import find_target
from dooly.engines.vllm._known import _check_cpu, check_known
from dooly.engines.vllm._methods import Method, find_method, has_kernel
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
        (
            {"quantization_config": {"quant_method": "fp9"}},
            None,
            "quantization_config: quant_method: vLLM has no method 'fp9'; ",
        ),
        ({}, "fp9", "--quantization: vLLM has no method 'fp9', but awq, [^;]*, fp8, [^;]*; leave it out for what config\\.json"),
        ({}, "none", "--quantization: vLLM has no method 'none', but awq, "),
        ({}, "", "--quantization: vLLM has no method '', but awq, "),
    ],
    ids=["architecture", "method", "flag", "a word elsewhere", "nothing"],
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
        {"quantization_config": {"quant_method": "auto-round"}},
    ],
    ids=["an architecture of Transformers", "a method by its library's name", "a method", "a method by another name"],
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


def _quantised(**section: object) -> dict[str, Any]:
    return {"quantization_config": section}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "fp8"}, "vLLM needs activation_scheme for fp8; add it$"),
        (
            {"quant_method": "fp8", "activation_scheme": "wild"},
            "activation_scheme: vLLM has no 'wild'; it is one of static, dynamic$",
        ),
        (
            {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": "abc"},
            "weight_block_size: 'abc' is no list",
        ),
        ({"quant_method": "awq", "bits": 4}, "vLLM needs q_group_size or group_size for awq; add it$"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}, "vLLM needs sym for gptq; add it$"),
        (
            {"quant_method": "modelopt", "quantization": {"quant_algo": "WILD"}},
            "quant_algo: vLLM has no 'WILD'; it is one of FP8, ",
        ),
    ],
)
def test_a_section_that_lacks_what_its_method_needs_is_refused(tmp_path: Path, section: dict[str, Any], message: str) -> None:
    """By the fields that the engine's own class takes without a default, and the values that it lists."""
    with pytest.raises(UnsupportedModelError, match=f"^made-up: quantization_config: {message}"):
        check_known(_model(tmp_path, **_quantised(**section)), ServingConfig(), find_target("h200"))


def test_what_a_device_lacks_is_refused(tmp_path: Path) -> None:
    """NVFP4 has no kernel on a CPU, nor have blocks on one without AMX; a method may need a later GPU."""
    nvfp4 = _model(tmp_path, **_quantised(quant_method="modelopt", quant_algo="NVFP4"))
    check_known(nvfp4, ServingConfig(), find_target("h200"))
    with pytest.raises(UnsupportedModelError, match=r"^made-up: on a CPU vLLM has no kernel for NVFP4; trace it as on a GPU"):
        _check_cpu(nvfp4, nvfp4.config["quantization_config"])
    later = Method(min_capability=100)
    with (
        patch("dooly.engines.vllm._known.find_method", return_value=later),
        pytest.raises(UnsupportedModelError, match=r"needs a GPU of compute capability 10\.0, and h200 has 9\.0; trace"),
    ):
        check_known(nvfp4, ServingConfig(), find_target("h200"))


def test_a_broken_section_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """One line, as for an architecture that is unknown."""
    _model(tmp_path, **_quantised(quant_method="fp8"))
    run = subprocess.run([sys.executable, "-c", _REFUSE, str(tmp_path)], check=True, capture_output=True, text=True)
    assert run.stdout == "2 False False\n"
    assert run.stderr.count("\n") == 1


def test_methods_are_read_of_the_engines_files() -> None:
    """Those that configurations in use declare, and none by a name that is none."""
    assert (find_method("fp8") or Method()).fields == (("quant_method",), ("activation_scheme",))
    assert (find_method("gptq") or Method()).fields == (("bits",), ("group_size",), ("desc_act",), ("sym",))
    assert "NVFP4" in (find_method("modelopt") or Method()).values["quant_algo"]
    assert find_method("fp9") is None
    assert [has_kernel(name, "CPU") for name in ("NVFP4", "FP8", "fp9")] == [False, True, None]
