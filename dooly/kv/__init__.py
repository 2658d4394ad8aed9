"""KV-cache and prefill policies: which of a prompt's tokens attention reads, and what that does to its output.

Loads torch only when a policy computes.
"""

from dooly.kv._adakv import AdaKV
from dooly.kv._allocation import Scope
from dooly.kv._apply import AppliedPolicy, apply
from dooly.kv._criticalkv import CriticalAdaKV, CriticalKV
from dooly.kv._critiprefill import CritiPrefill
from dooly.kv._defensivekv import DefensiveKV
from dooly.kv._laprox import LaProx
from dooly.kv._layer import LayerInputs
from dooly.kv._policy import Policy, kept_indices, select
from dooly.kv._registry import POLICIES, find_policy
from dooly.kv._snapkv import SnapKV

__all__ = [
    "POLICIES",
    "AdaKV",
    "AppliedPolicy",
    "CritiPrefill",
    "CriticalAdaKV",
    "CriticalKV",
    "DefensiveKV",
    "LaProx",
    "LayerInputs",
    "Policy",
    "Scope",
    "SnapKV",
    "apply",
    "find_policy",
    "kept_indices",
    "select",
]
