"""Forms in which a model's files say that its weights are quantised."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dooly.engines import ModelSource
from dooly.engines._quantization import check_taken, declared_quantization
from dooly.errors import InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., ModelSource]

PLAIN = {"architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a configuration with some fields, and what lies beside it."""

    def run(changes: dict[str, Any], beside: object = None) -> ModelSource:
        (tmp_path / "config.json").write_text(json.dumps(PLAIN | changes))
        if beside is not None:
            (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
        return ModelSource("made-up", tmp_path)

    return run


@pytest.mark.parametrize(
    ("changes", "beside", "method"),
    [
        ({}, None, None),
        ({"quantization_config": None}, None, None),
        ({"quantization_config": {"quant_method": "fp8"}}, None, "fp8"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, None, "awq"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, None, "compressed-tensors"),
        ({"quantization_config": {"quant_algo": "FP8", "producer": {"name": "modelopt"}}}, None, "modelopt"),
        ({"quantization_config": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}, None, None),
        ({}, {"producer": {}, "quantization": {"quant_algo": "NVFP4"}}, "modelopt"),
        ({}, {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}, None),
    ],
)
def test_forms_are_told_apart(write: Write, changes: dict[str, Any], beside: object, method: str | None) -> None:
    """The method is named where weights are quantised, and only there; files that name an algorithm alone are ModelOpt's."""
    found = declared_quantization(write(changes, beside))
    assert (found and found["quant_method"]) == method


@pytest.mark.parametrize(
    ("changes", "beside", "error", "message"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, None, UnsupportedModelError, r"quantization: .* no engine here reads"),
        ({"quantization_config": {"bits": 4}}, None, UnsupportedModelError, "names neither quant_method nor quant_algo"),
        ({}, [], InvalidInputError, r"hf_quant_config\.json: not a JSON object with quantization\.quant_algo"),
        ({}, {"quantization": {}}, InvalidInputError, r"hf_quant_config\.json: not a JSON object"),
    ],
)
def test_other_forms_are_refused(
    write: Write, changes: dict[str, Any], beside: object, error: type[Exception], message: str
) -> None:
    """A form that is not understood is an error of one line, and not full precision."""
    with pytest.raises(error, match=message) as refused:
        declared_quantization(write(changes, beside))
    assert "\n" not in str(refused.value)


def test_an_engine_that_takes_no_notice_is_refused(write: Write) -> None:
    """What says that it is quantised is not traced at full precision; what is read as quantised goes on."""
    model = write({"quantization_config": {"quant_method": "fp8"}})
    check_taken(model, "fp8")
    check_taken(write({}), None)
    with pytest.raises(UnsupportedModelError, match=r"^made-up: its files say that weights are quantised \(fp8\), but vLLM"):
        check_taken(write({"quantization_config": {"quant_method": "fp8"}}), None)
