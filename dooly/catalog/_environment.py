"""What the environment of a measurement is: device, driver, versions, backend and settings, as the measuring process has them."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING

from dbstore import Environment
from dooly.device import Gpu, cpu_name, visible_gpus
from dooly.engines import ENGINES, engine_packages
from dooly.errors import MeasurementError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import nn

    from dooly.engines import Engine, ServingConfig


CUDA_GRAPHS = "cudagraph"
"""How an engine on a GPU executes by itself, as environments name it."""


def describe_environment(engine: Engine, serving: ServingConfig) -> Environment:
    """Return the environment that an engine measures in."""
    import torch

    device = next(engine.network.parameters()).device
    on_gpu = device.type == "cuda"
    gpu = Gpu.of(device) if on_gpu else None
    return Environment(
        device=torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        device_kind=device.type,
        driver=gpu.driver if gpu else platform.release(),
        torch_version=torch.__version__,
        engine=engine.name,
        engine_version=engine.version,
        attention_backend=engine.attention_backend,
        dtype=serving.dtype,
        kv_cache_dtype=engine.kv_cache_dtype,
        block_size=engine.block_size,
        execution_mode=engine.execution_mode,
        quantization=engine.quantization,
        num_threads=None if on_gpu else torch.get_num_threads(),
        cuda_version=str(torch.version.cuda) if on_gpu else None,
        clocks=gpu.limits if gpu else None,
        host=cpu_name() if on_gpu else None,
        model_runner=engine.model_runner if on_gpu else None,
    )


def describe_module_environment(module: nn.Module) -> Environment:
    """Return the environment that a plain module is measured in: this process on the device of the module.

    Raises:
        MeasurementError: Dooly cannot time that device.
    """
    import torch

    tensors = [*module.parameters(), *module.buffers()]
    device_kind = tensors[0].device.type if tensors else "cpu"
    if device_kind != "cpu":
        raise MeasurementError(f"device {device_kind!r}: plain modules can be timed on 'cpu' only; move the module there")
    return Environment(
        device=cpu_name(),
        device_kind=device_kind,
        driver=platform.release(),
        torch_version=torch.__version__,
        engine="torch",
        engine_version=torch.__version__,
        # Which attention kernel and which element types an operation has stands in its graph, and so in its signature.
        attention_backend="as traced",
        dtype=f"as traced, float32 products {torch.get_float32_matmul_precision()}",
        kv_cache_dtype="none",
        block_size=1,
        execution_mode="eager",
        quantization=None,
        num_threads=torch.get_num_threads(),
    )


def on_this_machine(environments: Sequence[Environment]) -> list[Environment]:
    """Return those of some environments that are most like this machine, as far as that shows without torch or an engine.

    What tells nothing, as the driver of a GPU where there is none, leaves all.
    """
    if len(environments) <= 1:  # nothing to choose from, so no look at the machine
        return list(environments)
    gpus = visible_gpus()
    here: dict[str, Collection[str | None]] = {
        "device": {cpu_name(), *(gpu.name for gpu in gpus)},
        "driver": {platform.release(), *(gpu.driver for gpu in gpus)},
        "clocks": {None, *(gpu.limits for gpu in gpus)},
        "engine_version": {installed_version(p) for e in environments if e.engine in ENGINES for p in engine_packages(e.engine)},
        "torch_version": {installed_version("torch")},
    }
    candidates = list(environments)
    for name, values in here.items():
        candidates = [e for e in candidates if _public(getattr(e, name)) in set(map(_public, values))] or candidates
    return candidates


def installed_version(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _public(version: str | None) -> str | None:
    """Return a version without what builds add: `2.13.0` for `2.13.0+cpu`."""
    return version and version.partition("+")[0]
