"""What the environment of a measurement is: device, driver, versions, backend and settings, as the running engine has them."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from dbstore import Environment
from dooly.measure._clocks import Gpu

if TYPE_CHECKING:
    from dooly.engines import ServingConfig
    from dooly.engines.vllm import VllmEngine


def describe_environment(engine: VllmEngine, serving: ServingConfig) -> Environment:
    """Return the environment that an engine measures in."""
    import torch
    import vllm

    device = next(engine.network.parameters()).device
    on_gpu = device.type == "cuda"
    gpu = Gpu.of(device) if on_gpu else None
    return Environment(
        device=torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        device_kind=device.type,
        driver=gpu.driver if gpu else platform.release(),
        torch_version=torch.__version__,
        engine="vllm",
        engine_version=vllm.__version__,
        attention_backend=engine.attention_backend,
        dtype=serving.dtype,
        kv_cache_dtype="auto",
        block_size=engine.block_size,
        execution_mode=engine.execution_mode,
        quantization=None,
        num_threads=None if on_gpu else torch.get_num_threads(),
        cuda_version=str(torch.version.cuda) if on_gpu else None,
        clocks=gpu.limits if gpu else None,
        host=cpu_name() if on_gpu else None,
        model_runner=engine.model_runner if on_gpu else None,
    )


def cpu_name() -> str:
    """Return the processor's name and number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name or platform.machine()} x{os.cpu_count()}"
