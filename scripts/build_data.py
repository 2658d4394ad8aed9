"""Make the data that ships with Dooly from other people's measurements:  build_data.py GPUDATA

GPUDATA holds aiconfigurator's tables, a folder a system (`aiconfigurator/h200_sxm`, ...). Writes `dooly/data/NAME` and prints how far
each family is off on configurations held out of its fit.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dooly.imports import build_device
from dooly.predict import Hardware

SOURCE = "aiconfigurator (ai-dynamo/aiconfigurator 095f58a), Apache-2.0, NVIDIA: tables of vLLM 0.24.0"
SYSTEMS = {
    # Datasheet figures of the machines, as the tables' own system.yaml has them; multiprocessors as the driver reports them.
    "h100": ("h100_sxm", "NVIDIA H100 80GB HBM3", 85_899_345_920, 3.35e12),
    "h200": ("h200_sxm", "NVIDIA H200", 151_397_597_184, 4.8e12),
}
FLOPS_PER_S, NUM_SMS = 989e12, 132


def main(gpudata: Path) -> None:
    """Build every device."""
    for name, (folder, device, memory_bytes, bandwidth) in SYSTEMS.items():
        facts = Hardware(name, device, memory_bytes, bandwidth, FLOPS_PER_S, NUM_SMS, bandwidth, 0.0, "vllm 0.24.0", SOURCE)
        out = Path(__file__).parents[1] / "dooly" / "data" / name
        for family, found in build_device(gpudata / "aiconfigurator" / folder, out, facts).items():
            errors = f"{found.relative_error:.1%} median, {found.relative_error_p90:.1%} p90"
            print(f"{name} {family}: {found.num_points} points of {found.num_configurations} configurations, held out {errors}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
