"""Readers of other tools' measurements, one file a tool; and the data that ships for a device, made from them."""

from dooly.imports._device import build_device

__all__ = ["build_device"]
