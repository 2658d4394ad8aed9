"""Make a model's configuration one of its first layers: what measuring runs, in whichever form an engine takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def first_layers(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """Return what makes a text model's configuration one of its first layers: their number, and lists with an entry a layer."""
    total = config["num_hidden_layers"]
    lists = {name: value[:num_layers] for name, value in config.items() if isinstance(value, list) and len(value) == total}
    return {**lists, "num_hidden_layers": min(num_layers, total)}


def keep_first_layers(config: Any, num_layers: int) -> Any:  # noqa: ANN401 - a Transformers configuration
    """Cut a model's configuration to its first layers, by whatever name its family has for their number, and return it.

    One without layers, such as the empty one whose fate vLLM asks first, stays as it is.
    """
    text = config.get_text_config()
    total = getattr(text, "num_hidden_layers", None)
    if total is not None:
        for name, value in first_layers({**vars(text), "num_hidden_layers": total}, num_layers).items():
            setattr(text, name, value)
    return config
