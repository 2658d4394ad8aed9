"""Readers of other tools' measurements, one file a tool; and the data that ships for a device, made from them."""

from dooly.imports._device import build_device, family_points
from dooly.imports._llmservingsim import build_bundled_device, read_bundle
from dooly.imports._measured import recorded_sizes, write_measured

__all__ = ["build_bundled_device", "build_device", "family_points", "read_bundle", "recorded_sizes", "write_measured"]
