"""Sizes of a model as its configuration has them, for files that name them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.errors import UnsupportedModelError, spell

if TYPE_CHECKING:
    from dooly.engines import ModelSource

_HEADS, KV_HEADS = "num_attention_heads", "num_key_value_heads"


def sizes_of(model: ModelSource, tool: str, *names: str) -> tuple[int, ...]:
    """Return sizes of a model by their names in its configuration; key/value heads that it leaves out are as many as heads.

    Raises:
        UnsupportedModelError: One of them is no whole number above 0, or is not there.
    """
    config = model.text_config
    found = {name: config.get(_HEADS if name == KV_HEADS and config.get(name) is None else name) for name in names}
    for name, size in found.items():
        if not isinstance(size, int) or size < 1:
            raise UnsupportedModelError(
                f"--format {tool}: {model.name}: {name} is {spell(size)} in its configuration, and the files name it; export a "
                "model that is built like Llama"
            )
    return tuple(found.values())  # type: ignore[arg-type]  # checked above
