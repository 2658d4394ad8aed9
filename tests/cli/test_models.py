"""`dooly models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.engines import listed_models

if TYPE_CHECKING:
    from collections.abc import Callable


def test_every_listed_model_has_a_row(dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Each listed model shows its name, architecture, number of layers and hidden size."""
    code, out, err = dooly("models")
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert (code, err) == (0, "")
    assert rows.keys() >= {model.name for model in listed_models()}
    assert rows["llama-3.1-70b"] == ["LlamaForCausalLM", "80", "8192"]
