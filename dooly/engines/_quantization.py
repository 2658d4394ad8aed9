"""How a model's files say that its weights are quantised: the forms that model makers publish, told apart without an engine.

An engine that does not know a form takes no notice of it, and would run a model of the same name at full precision.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError, UnsupportedModelError, spell

if TYPE_CHECKING:
    from dooly.engines._config import ModelSource

_MODELOPT = "modelopt"
"""The method whose files name an algorithm, and, in some versions, no method."""

_UNSTATED = {"group_size": 16, "exclude_modules": []}
"""What a file that says no more than an algorithm means: NVFP4 has a scale for 16 elements, and no layer is left out."""


def declared_quantization(model: ModelSource) -> dict[str, Any] | None:
    """Return what a model's files say of quantised weights, with its `quant_method`; None where weights are of full precision.

    Raises:
        UnsupportedModelError: They say it in a form that no engine reads.
        InvalidInputError: `hf_quant_config.json` is no JSON object.
    """
    config = model.config
    if (other := config.get("quantization")) is not None:
        raise UnsupportedModelError(
            f"{model.folder / 'config.json'}: quantization: {spell(other)} is a form that no engine here reads (MLX writes it); "
            "take the checkpoint that it was made from, or one with a quantization_config"
        )
    nested = model.text_config
    found: dict[str, Any] | None = nested.get("quantization_config") or nested.get("compression_config")
    if not found:
        return _beside(model)
    if "quant_method" in found:
        return found
    if "quant_algo" in found:
        return {**found, "quant_method": _MODELOPT} if found["quant_algo"] else None
    raise UnsupportedModelError(
        f"{model.folder / 'config.json'}: quantization_config: names neither quant_method nor quant_algo; "
        "add the method that the checkpoint was made with, as quant_method"
    )


def _beside(model: ModelSource) -> dict[str, Any] | None:
    """Return what a `hf_quant_config.json` beside a `config.json` says."""
    path = model.folder / "hf_quant_config.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        stated = _UNSTATED | found["quantization"]
        # Without the producer: vLLM would hold its algorithms to those of older versions of it.
        return {"quantization": stated, "quant_method": _MODELOPT} if found["quantization"]["quant_algo"] else None
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidInputError(
            f"{path}: not a JSON object with quantization.quant_algo ({error}); fetch the file again"
        ) from error


def check_taken(model: ModelSource, taken: str | None) -> None:
    """Check that an engine takes a model as quantised that says so of itself.

    Args:
        model: The model.
        taken: The method by which the engine reads the weights; None for full precision.

    Raises:
        UnsupportedModelError: It takes it as of full precision.
    """
    declared = declared_quantization(model)
    if declared is not None and taken is None:
        raise UnsupportedModelError(
            f"{model.name}: its files say that weights are quantised ({declared['quant_method']}), "
            "but vLLM takes them as of full precision; give the method as --quantization"
        )
