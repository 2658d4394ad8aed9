"""Make the data that ships with Dooly: tables of the listed models' operations, and devices from other people's measurements.

    python scripts/build_data.py tables               # needs the engine; minutes
    python scripts/build_data.py devices GPUDATA      # needs pyarrow; minutes

GPUDATA holds aiconfigurator's tables, a folder a system (`aiconfigurator/h200_sxm`, ...). For each family it prints how far off
it is on configurations held out of its fit.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dooly.engines import ServingConfig, listed_models
from dooly.errors import UnsupportedModelError

DATA = Path(__file__).parents[1] / "dooly" / "data"
SOURCE = "aiconfigurator (ai-dynamo/aiconfigurator 095f58a), Apache-2.0, NVIDIA: tables of vLLM 0.24.0"
SYSTEMS = {
    # Datasheet figures of the machines, as the tables' own system.yaml has them; multiprocessors as the driver reports them.
    "h100": ("h100_sxm", "NVIDIA H100 80GB HBM3", 85_899_345_920, 3.35e12),
    "h200": ("h200_sxm", "NVIDIA H200", 151_397_597_184, 4.8e12),
}
FLOPS_PER_S, NUM_SMS = 989e12, 132
RANKS = (1, 2, 4, 8)


def build_devices(gpudata: Path) -> None:
    """Write the data of every device."""
    from dooly.imports import build_device
    from dooly.predict import Hardware

    for name, (folder, device, memory_bytes, bandwidth) in SYSTEMS.items():
        facts = Hardware(name, device, memory_bytes, bandwidth, FLOPS_PER_S, NUM_SMS, bandwidth, 0.0, "vllm 0.24.0", SOURCE)
        for family, found in build_device(gpudata / "aiconfigurator" / folder, DATA / name, facts).items():
            errors = f"{found.relative_error:.1%} median, {found.relative_error_p90:.1%} p90"
            print(f"{name} {family}: {found.num_points} points of {found.num_configurations} configurations, held out {errors}")


def build_tables() -> None:
    """Trace every listed model at every number of ranks that divides it."""
    from dooly.catalog import shipped_file, trace_operations, write_table

    (DATA / "tables").mkdir(parents=True, exist_ok=True)
    for model in listed_models():
        for ranks in RANKS:
            serving = ServingConfig(tensor_parallel_size=ranks)
            file = Path(str(shipped_file(model, serving)))
            try:
                write_table(trace_operations(model, serving), model, file)
            except UnsupportedModelError as error:
                print(f"left out: {error}")
            else:
                print(f"{file.name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or [""]
    if what == "tables":
        build_tables()
    elif what == "devices" and rest:
        build_devices(Path(rest[0]))
    else:
        sys.exit(__doc__)
