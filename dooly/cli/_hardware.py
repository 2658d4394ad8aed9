"""`dooly hardware`: the devices whose measurements ship with Dooly."""

from __future__ import annotations

from dooly.cli._output import new_table, show


def hardware() -> None:
    """List the devices whose measurements ship with Dooly, for --hardware."""
    from dooly.predict import listed_hardware

    numbers = ("memory GB", "GB/s", "bf16 TFLOP/s")
    table = new_table("name", "device", *numbers, "kernels of", numbers=numbers)
    devices = listed_hardware()
    for found in devices:
        facts = (found.memory_bytes / 1e9, found.memory_bytes_per_s / 1e9, found.flops_per_s / 1e12)
        table.add_row(found.name, found.device, *(f"{value:.0f}" for value in facts), found.engine)
    show(table, "; ".join(dict.fromkeys(found.source for found in devices)))
