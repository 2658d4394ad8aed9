"""Readers of other tools' measurements, one file a tool: into records of a store, or into the data that ships for a device."""

from dooly.imports._bundled_device import build_bundled_device
from dooly.imports._device import build_device, family_points
from dooly.imports._import import ImportResult, Measurements, import_measurements, read_measurements
from dooly.imports._llmservingsim import BUNDLE_WORDS, TIMED_TOGETHER
from dooly.imports._measured import carry_curves, recorded_sizes, write_measured

__all__ = [
    "BUNDLE_WORDS",
    "TIMED_TOGETHER",
    "ImportResult",
    "Measurements",
    "build_bundled_device",
    "build_device",
    "carry_curves",
    "family_points",
    "import_measurements",
    "read_measurements",
    "recorded_sizes",
    "write_measured",
]
