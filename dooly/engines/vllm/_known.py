"""What vLLM knows, looked up in its files without loading it: what it does not know is then refused at once."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dooly.engines._quantization import declared_quantization
from dooly.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dooly.engines._config import ModelSource, ServingConfig

_ARCHITECTURES = (("vllm", "model_executor/models/registry.py"), ("transformers", "models/auto/modeling_auto.py"))
"""Where classes of models are registered: vLLM's own, and those that it takes from Transformers."""
_METHODS = (("vllm", "model_executor/layers/quantization/*.py"), ("vllm", "config/quantization.py"))
"""Where methods of quantisation have their names."""


def check_known(model: ModelSource, serving: ServingConfig) -> None:
    """Check that vLLM has code for a model and its quantisation by some of their names; without vLLM there is nothing to check.

    Raises:
        UnsupportedModelError: It has none.
    """
    if find_spec("vllm") is None or any(not e.value.startswith("vllm.") for e in entry_points(group="vllm.general_plugins")):
        return  # a plugin may register any name
    names = model.config["architectures"]
    if not any(_is_written(_ARCHITECTURES, names)):
        raise UnsupportedModelError(
            f"{model.name}: vLLM registers no architecture {', '.join(names)}; see whether a later version does, or correct "
            "architectures in its config.json"
        )
    declared = (declared_quantization(model) or {}).get("quant_method")
    for place, method in (("--quantization", serving.quantization), ("quantization_config: quant_method", declared)):
        if method is not None and not any(_is_written(_METHODS, (str(method).lower(), str(method).replace("_", "-")))):
            raise UnsupportedModelError(f"{model.name}: {place}: vLLM has no method {method!r}; correct it")


def _is_written(places: Iterable[tuple[str, str]], names: Iterable[str]) -> Iterator[bool]:
    """Yield, file by file, whether it holds one of the names as a string."""
    quoted = [f'"{name}"' for name in names]
    for package, pattern in places:
        for folder in getattr(find_spec(package), "submodule_search_locations", None) or ():
            yield from (any(name in file.read_text(encoding="utf-8") for name in quoted) for file in Path(folder).glob(pattern))
