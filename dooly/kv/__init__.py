"""KV-cache and prefill policies: which of a prompt's tokens attention reads, and what that does to its output.

Loads torch only when a policy computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dooly.kv._adakv import AdaKV
from dooly.kv._apply import AppliedPolicy, apply
from dooly.kv._criticalkv import CriticalAdaKV, CriticalKV
from dooly.kv._critiprefill import CritiPrefill
from dooly.kv._defensivekv import DefensiveKV
from dooly.kv._error import CapturedLayer, LayerError, OutputError, capture_attention, output_errors
from dooly.kv._laprox import LaProx
from dooly.kv._layer import LayerInputs
from dooly.kv._policy import Policy, kept_indices, select
from dooly.kv._press import as_press
from dooly.kv._profile import profile_selection
from dooly.kv._registry import POLICIES, find_policy
from dooly.kv._snapkv import SnapKV
from dooly.kv._structured import AttentionShape, structured_llama, structured_text
from dooly.kv_policy import Scope

if TYPE_CHECKING:
    from dooly.kv._module import Selection

__all__ = [
    "POLICIES",
    "AdaKV",
    "AppliedPolicy",
    "AttentionShape",
    "CapturedLayer",
    "CritiPrefill",
    "CriticalAdaKV",
    "CriticalKV",
    "DefensiveKV",
    "LaProx",
    "LayerError",
    "LayerInputs",
    "OutputError",
    "Policy",
    "Scope",
    "Selection",
    "SnapKV",
    "apply",
    "as_press",
    "capture_attention",
    "find_policy",
    "kept_indices",
    "output_errors",
    "profile_selection",
    "select",
    "structured_llama",
    "structured_text",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class that loads torch
    """Return `Selection`, a subclass of `nn.Module`, when it is asked for."""
    if name == "Selection":
        from dooly.kv._module import Selection

        return Selection
    raise AttributeError(f"module 'dooly.kv' has no attribute {name!r}; see dooly.kv.__all__")
