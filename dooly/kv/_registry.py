"""The policies by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError, spell
from dooly.kv._adakv import AdaKV
from dooly.kv._criticalkv import CriticalAdaKV, CriticalKV
from dooly.kv._critiprefill import CritiPrefill
from dooly.kv._defensivekv import DefensiveKV
from dooly.kv._laprox import LaProx
from dooly.kv._snapkv import SnapKV
from dooly.kv_policy import Scope, known_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.kv._policy import Policy

POLICIES: Mapping[str, Policy | CritiPrefill] = {
    "snapkv": SnapKV(),
    "adakv": AdaKV(),
    "criticalkv": CriticalKV(),
    "critical-adakv": CriticalAdaKV(),
    "defensivekv": DefensiveKV(),
    "layer-defensivekv": DefensiveKV(scope=Scope.MODEL),
    "laprox": LaProx(),
    "critiprefill": CritiPrefill(),
}
"""Each policy with its published defaults."""


def find_policy(name: str) -> Policy | CritiPrefill:
    """Return the policy of a name, by any case and with hyphens or without.

    Raises:
        InvalidInputError: There is none.
    """
    known = known_name(name)
    if known is None:
        raise InvalidInputError(f"policy: {spell(name)} is not one of {', '.join(POLICIES)}")
    return POLICIES[known]
