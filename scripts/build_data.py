"""Make the data that ships with Dooly: tables of the listed models' operations, and devices from other people's measurements.

    python scripts/build_data.py tables               # needs the engine; minutes
    python scripts/build_data.py devices GPUDATA      # needs pyarrow; minutes
    python scripts/build_data.py own                  # what our own records tell of a device beside these

GPUDATA holds aiconfigurator's tables, a folder a system (`aiconfigurator/h200_sxm`, ...), and LLMServingSim's bundles
(`llmservingsim/rtxpro6000/MODEL/tpN`). For each family it prints how far off it is on configurations held out of its fit.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dooly.engines import ServingConfig, find_model, find_target, listed_models
from dooly.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.engines import ModelSource
    from dooly.predict import Hardware
    from dooly.tracing import TracedOperation

DATA = Path(__file__).parents[1] / "dooly" / "data"
SOURCE = "aiconfigurator (ai-dynamo/aiconfigurator 095f58a), Apache-2.0, NVIDIA: tables of vLLM 0.24.0"
SYSTEMS = {
    # Memory as CUDA reports it (79.11, 139.81 and below 94.97 GiB), bandwidth by the datasheet.
    "h100": ("h100_sxm", "NVIDIA H100 80GB HBM3", 84_943_715_697, 3.35e12),
    "h200": ("h200_sxm", "NVIDIA H200", 150_119_844_413, 4.8e12),
}
NOTES = {
    "linear-fp8_block": "products in FP8 by blocks take 60 us or more in these tables, however small; shorter than 0.2 ms, they "
    "go by those of one scale"
}
"""What is doubtful in the tables, by family."""
HOST = (1_500_000, 2_000_000, 7_800_000, 19_100_000)
"""What a host takes to launch steps of a model of 30 layers; `dooly.latency.HostTimes` says what each is. The last two are what
benchmarks/h200_truth.py finds in the first runs of Llama 3.1 8B and Qwen2.5 7B on an H200; the first two are assumed: decodes
take longer on the device."""
HOST_EXPERTS_NS = 700_000
"""What that host takes more for a layer's mixture of experts, where a step is not captured: what Qwen3 30B A3B takes more by
layer than Llama 3.1 8B in the first runs of the second quarter of an hour, 1.04 ms, over how much slower that one's host was."""
POWER_CAP = {"burst_ns": 65_000_000, "slowdown_permille": 180}
"""What the power limit of 700 W takes from products on Hopper: benchmarks/sustained.py on an H200, an H100 is taken to be alike.
Products of Llama's widest layer in bf16 and FP8 take 17 and 19 % longer from 75 and 50 ms on; in turns of 20 ms with pauses as
long they never do."""
RECORDS = Path(__file__).parents[1] / "benchmarks" / "groundtruth"
OWN = ("h200", "llama-3.1-8b")
"""Device, as its folder of records has it, and model."""
OWN_SOURCE = "single operations of Llama 3.1 8B and their families by Dooly, Apache-2.0, with vLLM 0.26.0"
CARRIED, CACHE_BYTES = "h100", 50e6
"""The device with the multiprocessors and the last cache of `OWN`'s, and slower memory, and what that cache holds."""
FLOPS_PER_S, FLOAT32_FLOPS_PER_S, NUM_SMS = 989e12, 67e12, 132
RANKS = (1, 2, 4, 8)
QUANTISED, QUANTISED_FOR = ("llama-3.1-8b", "llama-3.1-70b"), "h200"
"""Models whose tables ship in FP8 too, and the GPU that they are traced for; one table serves its compute capability."""
BUNDLES = "LLMServingSim (casys-kaist/LLMServingSim 5daddb2), MIT, CASYS Lab at KAIST: tables of vLLM 0.19.0"
BUNDLED = (("llama-3.1-8b", 1), ("llama-3.1-8b", 2), ("qwen3-32b", 2))
"""Models and ranks whose operations were measured; mixtures of experts are not read yet."""
RTX = ("rtxpro6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", 101_973_261_025, 1.597e12, 503.8e12, 120e12, 188)
"""Name, device; memory, bandwidth, rates in bf16 and float32, multiprocessors by the datasheet. Its bundles tell no attention."""
GAP_NS = 500.0
"""Between two kernels of a CUDA graph: one of 2.9 us took 3.4 us there (A. Gray, NVIDIA Technical Blog, 5 September 2019)."""


def build_devices(gpudata: Path) -> None:
    """Write the data of every device."""
    from dooly.imports import build_device
    from dooly.latency import HostTimes
    from dooly.predict import Hardware

    for name, (folder, device, memory_bytes, bandwidth) in SYSTEMS.items():
        speeds = (memory_bytes, bandwidth, FLOPS_PER_S, NUM_SMS, bandwidth, 0.0)
        more = {"notes": NOTES, "host": HostTimes(*HOST), "host_experts_ns": HOST_EXPERTS_NS, **POWER_CAP}
        more |= {"float32_flops_per_s": FLOAT32_FLOPS_PER_S}
        facts = Hardware(name, device, *speeds, "vllm 0.24.0", SOURCE, "FLASH_ATTN", **more)
        for family, found in build_device(gpudata / "aiconfigurator" / folder, DATA / name, facts).items():
            errors = f"{found.relative_error:.1%} median, {found.relative_error_p90:.1%} p90"
            print(f"{name} {family}: {found.num_points} points of {found.num_configurations} configurations, held out {errors}")


def build_bundled(gpudata: Path) -> None:
    """Write the data of the device that bundles were measured on."""
    from dooly.catalog import operation_table
    from dooly.imports import build_bundled_device
    from dooly.predict import Hardware

    name, device, memory_bytes, bandwidth, flops_per_s, float32_flops_per_s, num_sms = RTX
    speeds = (memory_bytes, bandwidth, flops_per_s, num_sms, bandwidth, 0.0)
    more = {"gap_ns": GAP_NS, "float32_flops_per_s": float32_flops_per_s}
    facts = Hardware(name, device, *speeds, "vllm 0.19.0", BUNDLES, **more)
    bundles = {
        gpudata / "llmservingsim" / name / model / f"tp{ranks}": operation_table(
            find_model(model), ServingConfig(tensor_parallel_size=ranks)
        )
        for model, ranks in BUNDLED
    }
    for folder, (found, attention) in build_bundled_device(bundles, DATA / name, facts).items():
        errors = ", ".join(f"{r.relative_error:.1%} median, {r.relative_error_p90:.1%} p90" for r in attention.values())
        print(f"{folder.parent.name} {folder.name}: attention held out {errors}; not placed: {', '.join(found.unplaced)}")
    print_curves(name, [operation for traced in bundles.values() for operation in traced.operations])


def print_curves(device: str, operations: Sequence[TracedOperation]) -> None:
    """Print how far members of families that multiply no matrices are off, each predicted by the others."""
    from dooly.predict._device_latencies import DeviceLatencies

    names = {operation.family: operation.name for operation in operations}
    for family, curve in DeviceLatencies(DATA / device).curves.items():
        print(f"{device} {names[family]}: {len(curve.members)} of the family, left out {curve.relative_error:.1%} median")


def build_own() -> None:
    """Add to a device what our own records tell of single operations; attention and whole steps are not among them."""
    from dbstore import Store
    from dooly.catalog import operation_table, profiled_model
    from dooly.imports import recorded_sizes, write_measured
    from dooly.predict import Hardware

    name, model_name = OWN
    model, serving = find_model(model_name), ServingConfig()
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(RECORDS / name / "records.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        store = Store.open(f"{folder}/db")
        traced, environment = profiled_model(store, model, replace(serving, attention_backend="FLASH_ATTN"), None)
        table = operation_table(model, serving)
        sizes = recorded_sizes(store, traced, environment, table)
    operations = {op.signature: op for op in table.operations}
    write_measured(sizes, operations, DATA / name)
    facts = Hardware.read(DATA / name)
    replace(facts, engine="vllm 0.24.0 and 0.26.0", source=f"{SOURCE}; {OWN_SOURCE}").write(DATA / name)
    print(f"{name}: {', '.join(operations[signature].name for signature in sizes)} of {model_name}")
    print_curves(name, table.operations)
    carry_to(CARRIED, facts)


def carry_to(name: str, known: Hardware) -> None:
    """Give a device the curves of one with faster memory, for which nobody measured the operations that only move bytes."""
    from dooly.imports import carry_curves
    from dooly.predict import Hardware

    facts = Hardware.read(DATA / name)
    carry_curves(DATA / known.name, DATA / name, known.moved_bytes_per_s / facts.moved_bytes_per_s, CACHE_BYTES)
    print(f"{name}: families carried over from {known.name}")


def build_tables() -> None:
    """Trace every listed model at every number of ranks that divides it, and some quantised, as for a GPU."""
    (DATA / "tables").mkdir(parents=True, exist_ok=True)
    for model in listed_models():
        for ranks in RANKS:
            build_table(model, ServingConfig(tensor_parallel_size=ranks))
    for name in QUANTISED:
        for ranks in RANKS:
            for cache in ("auto", "fp8"):
                serving = ServingConfig(tensor_parallel_size=ranks, quantization="fp8", kv_cache_dtype=cache)
                build_table(find_model(name), serving, QUANTISED_FOR)


def build_table(model: ModelSource, serving: ServingConfig, hardware: str | None = None) -> None:
    """Write the table of one model, at the device at hand or as for a GPU."""
    from dooly.catalog import shipped_file, trace_operations, write_table

    file = Path(str(shipped_file(model, serving, None if hardware is None else find_target(hardware))))
    try:
        write_table(trace_operations(model, serving, hardware), model, file)
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
        build_bundled(Path(rest[0]))
        build_own()
    elif what == "own":
        build_own()
    else:
        sys.exit(__doc__)
