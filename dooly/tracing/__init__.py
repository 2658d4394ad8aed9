"""Tracing: from a module to its operations, through a custom `torch.compile` backend with every size a symbol.

Loads torch only when something is traced; the table of operations (`TracedModel`) needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dooly.tracing._capture import Capture, dooly_backend, tracing
from dooly.tracing._constructor import instance_sizes
from dooly.tracing._fold import fold_layers, layer_kinds
from dooly.tracing._fold_in_order import fold_layers_in_order, followed_kinds
from dooly.tracing._forms import evaluate_form, form_names, rename_form
from dooly.tracing._forward import capture_forward
from dooly.tracing._layers import generic_path, layer_counts, layer_of
from dooly.tracing._model import TracedCall, TracedDim, TracedModel, TracedOperation, TracedTensor
from dooly.tracing._module import trace
from dooly.tracing._provenance import NO_PROVENANCE, ConfigFields, Provenance, name_sizes
from dooly.tracing._table import tabulate

if TYPE_CHECKING:
    from dooly.tracing._traced import Traced

__all__ = [
    "NO_PROVENANCE",
    "Capture",
    "ConfigFields",
    "Provenance",
    "Traced",
    "TracedCall",
    "TracedDim",
    "TracedModel",
    "TracedOperation",
    "TracedTensor",
    "capture_forward",
    "dooly_backend",
    "evaluate_form",
    "fold_layers",
    "fold_layers_in_order",
    "followed_kinds",
    "form_names",
    "generic_path",
    "instance_sizes",
    "layer_counts",
    "layer_kinds",
    "layer_of",
    "name_sizes",
    "rename_form",
    "tabulate",
    "trace",
    "tracing",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class that loads torch
    """Return `Traced`, a subclass of `nn.Module`, when it is asked for."""
    if name == "Traced":
        from dooly.tracing._traced import Traced

        return Traced
    raise AttributeError(f"module 'dooly.tracing' has no attribute {name!r}; see dooly.tracing.__all__")
