"""Measuring the forward of a plain module, operation by operation."""

from dooly.measure.module._profile import profile_module
from dooly.measure.module._profiler import module_copies

__all__ = ["module_copies", "profile_module"]
