"""Tracing: from a module to its operations, through a custom `torch.compile` backend with every size a symbol.

Loads torch only when something is traced; the table of operations (`TracedModel`) needs none.
"""

from dooly.trace._capture import Capture, dooly_backend, tracing
from dooly.trace._fold import fold_layers, layer_kinds
from dooly.trace._forms import evaluate_form, form_names, rename_form
from dooly.trace._model import TracedCall, TracedDim, TracedModel, TracedOperation, TracedTensor
from dooly.trace._module import Traced, trace
from dooly.trace._provenance import NO_PROVENANCE, ConfigFields, Provenance, name_sizes
from dooly.trace._table import tabulate

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
    "dooly_backend",
    "evaluate_form",
    "fold_layers",
    "form_names",
    "layer_kinds",
    "name_sizes",
    "rename_form",
    "tabulate",
    "trace",
    "tracing",
]
