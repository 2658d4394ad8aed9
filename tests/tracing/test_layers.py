from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.tracing import generic_path, layer_counts, layer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.tracing import TracedOperation


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("model.layers.0.mlp.gate_up_proj", "model.layers.0"),
        ("model.layers.11.input_layernorm", "model.layers.11"),
        ("layers.3.heads.1.query", "layers.3"),
        ("0.query", "0"),
        ("model.layers.0", None),
        ("model.norm", None),
        ("lm_head", None),
        ("", None),
    ],
)
def test_layers_are_told_by_their_number(module: str, layer: str | None) -> None:
    """A module belongs to the first numbered layer on its path, if any; a layer is not in itself."""
    assert layer_of(module) == layer


def test_a_layer_counts_as_often_as_it_runs(operation: Callable[..., TracedOperation]) -> None:
    """Four heads in each of six layers run 24 times, the layer six times, whichever of its modules comes last."""
    counts = {"layers.0.norm": 6, "layers.0.heads.0.query": 12, "layers.0.heads.2.query": 12, "norm": 1}
    operations = [operation(module, module, count=count) for module, count in counts.items()]
    assert layer_counts(operations) == layer_counts(operations[::-1]) == {"layers.0": 6}


def test_all_layers_share_a_path() -> None:
    """Numbers are taken out wherever they stand."""
    assert generic_path("model.layers.10.experts.3") == "model.layers.*.experts.*"
