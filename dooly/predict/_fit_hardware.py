"""The latency model of a model on a device whose measurements ship with Dooly."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbstore import Environment
from dooly.catalog import CUDA_GRAPHS, LAYER, operation_table
from dooly.engines import ModelSource, ServingConfig, serving_as_asked
from dooly.errors import InvalidInputError, spell
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._domain import Domain
from dooly.predict._fitted import FittedOperation
from dooly.predict._fused import fused_linear_layers, without_quantising
from dooly.predict._hardware import HOST_LAYERS, Hardware
from dooly.predict._kinds import FULL_PRECISION, Experts, families_of, kind_of
from dooly.predict._latency_model import BLOCK_SIZE, LatencyModel
from dooly.predict._operation import OperationWork
from dooly.predict._step_parts import laid_out

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dooly.latency import HostTimes
    from dooly.predict._interconnect import Interconnect
    from dooly.predict._kinds import Kind
    from dooly.predict._sources import OperationLatency
    from dooly.tracing import TracedModel, TracedOperation

_LIMITS = ((160 << 30, (1024, 16_384)), (70 << 30, (1024, 8_192)), (0, (256, 2_048)))
"""Memory from which on `vllm serve` lets a step work on so many requests and tokens; an A100 counts as small."""
_CACHES = ("auto", *FULL_PRECISION, "fp8", "fp8_e4m3")
"""Element types of KV caches over which attention was measured."""


def listed_hardware() -> tuple[Hardware, ...]:
    """Return the devices whose measurements ship with Dooly, by name.

    Examples:
        >>> [hardware.name for hardware in dooly.predict.listed_hardware()][:2]
        ['h100', 'h200']
    """
    with _data() as data:
        return tuple(Hardware.read(file.parent) for file in sorted(data.glob("*/hardware.json")))


def default_serving(model: ModelSource, hardware: str, **settings: Any) -> ServingConfig:  # noqa: ANN401 - as ServingConfig has them
    """Return the settings that `vllm serve` starts with on a device, but for those that are given.

    The longest sequence is the model's own; how many requests and tokens a step takes goes by the device's memory (vLLM 0.32).

    Args:
        model: The model, by its configuration.
        hardware: Name of a device that `dooly hardware` lists, or a folder of such data.
        **settings: Settings of `ServingConfig`, by name.

    Raises:
        InvalidInputError: There is no such device, a setting makes no sense, as a `max_model_len` beyond the model's
            positions, or `model` is none that `find_model` returned.

    Examples:
        >>> serving = dooly.default_serving(dooly.find_model("llama-3.1-8b"), "h200", max_model_len=8192)
        >>> serving.max_num_seqs, serving.max_num_batched_tokens
        (1024, 8192)
    """
    if not isinstance(model, ModelSource):
        raise InvalidInputError(f"default_serving: {spell(model)} is no model; give dooly.find_model(NAME)")
    serving_as_asked(model, settings)  # what is given is checked by its own name
    with device_folder(hardware) as folder:
        device = Hardware.read(folder)
    memory_bytes = 0 if "A100" in device.device else device.memory_bytes
    num_seqs, num_batched_tokens = next(limits for least_bytes, limits in _LIMITS if memory_bytes >= least_bytes)
    # What is given bounds what is not: no step of fewer tokens than requests, nor of more than these can have.
    tokens = settings.get("max_num_batched_tokens")
    num_seqs = settings.get("max_num_seqs") or min(num_seqs, tokens or num_seqs)
    longest = settings.get("max_model_len") or model.max_model_len
    limits: dict[str, Any] = {
        "max_model_len": longest,
        "max_num_seqs": num_seqs,
        "max_num_batched_tokens": tokens or min(num_batched_tokens, num_seqs * longest),
    }
    return ServingConfig(**limits | settings)


def load_hardware_model(
    name: str, model: ModelSource, serving: ServingConfig, interconnect: Interconnect | None = None
) -> LatencyModel:
    """Return the latency model of a model on a device whose measurements ship with Dooly.

    Its steps are the sum of their operations, as in an engine that runs them in CUDA graphs. What its host takes to launch them
    is apart, in `LatencyModel.host`.

    Raises:
        InvalidInputError: There is no such device, and the message names those there are; or the settings ask for a pipeline or
            for attention that was not measured.
        MissingOperationError: Nothing covers an operation of the model, or its table of operations cannot be had.
    """
    with device_folder(name) as folder:
        device = DeviceLatencies(folder, interconnect)
        _check_serving(device.hardware, serving)
        return assemble(operation_table(model, serving, device.hardware.name), device, serving)


def with_limits(latency: LatencyModel, serving: ServingConfig) -> LatencyModel:
    """Return a device's latency model for an engine of other limits; both share what is fitted, which saves most of the work.

    Args:
        latency: Made by `load_latency_model` for a device, with the same layout, element types and kernels; what its host takes
            stays, also where somebody said that it is slower.
        serving: The engine's settings. Its limits on steps, graphs and memory, and whether it schedules ahead, may differ.

    Raises:
        InvalidInputError: The latency model is of a store's records, which are measured within limits of their own.
    """
    if latency.hardware is None:
        raise InvalidInputError(
            f"with_limits: the latencies of {latency.traced.model} are a store's, within the limits that were measured; give a "
            "device's, as load_latency_model(..., hardware=...) returns them"
        )
    return latency.within(
        _domain(latency.hardware, serving),
        None if latency.host is None else _in_graphs(latency.host, serving),
        captured_tokens=serving.cudagraph_capture_sizes,
        schedules_ahead=serving.schedules_ahead,
    )


def _domain(hardware: Hardware, serving: ServingConfig) -> Domain:
    """Return what the engine's limits allow on a device: all requests may verify all their drafts at once."""
    num_sampled = serving.max_num_seqs * serving.num_sampled_per_request
    limits = (serving.max_num_batched_tokens, num_sampled, serving.max_model_len)
    return Domain(*limits, hardware.reach, is_measured=False)


def host_times(device: str, traced: TracedModel, serving: ServingConfig) -> HostTimes | None:
    """Return what a host takes to launch a model's steps on a device of this driver's name; None where nobody measured it."""
    known = known_hardware(device)
    return None if known is None else _host(known, traced, serving)


def known_hardware(device: str) -> Hardware | None:
    """Return the facts of a device by its driver's name; None where none of it ship."""
    return {hardware.device: hardware for hardware in listed_hardware()}.get(device)


def _host(hardware: Hardware, traced: TracedModel, serving: ServingConfig) -> HostTimes | None:
    """Return a host's times for a model by its layers, with the graphs that the settings have captured."""
    if hardware.host is None:
        return None
    layers = sum(op.count for op in traced.operations if op.stage == "engine" and op.name == LAYER)
    experts = sum(op.count for op in traced.operations if "num_experts" in op.attributes)
    return _in_graphs(hardware.host.of_layers(layers / HOST_LAYERS, experts * hardware.host_experts_ns), serving)


def _in_graphs(host: HostTimes, serving: ServingConfig) -> HostTimes:
    """Return the times of a host that launches the graphs which the settings have captured."""
    return replace(host, max_captured_tokens=serving.cudagraph_capture_sizes[-1])


def _check_serving(hardware: Hardware, serving: ServingConfig) -> None:
    """Refuse settings whose effect nothing measured on a device tells."""
    if serving.pipeline_parallel_size > 1:
        raise InvalidInputError(
            f"--pipeline-parallel-size: {serving.pipeline_parallel_size} ranks can be traced but not simulated yet; use 1"
        )
    if serving.attention_backend not in {None, hardware.attention_backend}:
        raise InvalidInputError(
            f"--attention-backend: the attention measured on {hardware.name} is {hardware.attention_backend}, not "
            f"{serving.attention_backend}; leave it out"
        )
    if serving.kv_cache_dtype not in _CACHES:
        raise InvalidInputError(
            f"--kv-cache-dtype: attention was measured over caches of {', '.join(_CACHES[1:])}, and auto is one of these; "
            f"{spell(serving.kv_cache_dtype)} is none; choose among them"
        )
    if serving.enforce_eager:
        raise InvalidInputError(
            f"--enforce-eager: what ships of {hardware.name} tells what its kernels take, not what launching each of them does; "
            "leave it out, or profile such a device and use --db"
        )


def assemble(traced: TracedModel, device: DeviceLatencies, serving: ServingConfig) -> LatencyModel:
    """Return the latency model that adds up what a device takes for each operation of a table."""
    latencies: dict[str, OperationLatency] = {}
    fused = fused_linear_layers(traced)

    def fitted(operation: TracedOperation) -> FittedOperation:
        if operation.signature not in latencies:
            latency = device.of(operation, traced.model)
            latencies[operation.signature] = without_quantising(latency, fused.get(operation.signature), device.hardware)
        return FittedOperation(operation, OperationWork(operation), latencies[operation.signature], device.hardware.gap_ns)

    kinds = {kind for operation in traced.operations if (kind := kind_of(operation)) is not None}
    used = {name for kind in kinds for name in families_of(kind)}
    return LatencyModel(
        traced,
        _environment(device.hardware, traced, serving),
        laid_out(traced, fitted),
        _domain(device.hardware, serving),
        device.hardware,
        _host(device.hardware, traced, serving),
        captured_tokens=serving.cudagraph_capture_sizes,
        schedules_ahead=serving.schedules_ahead,
        notes=(*(note for name, note in device.hardware.notes.items() if name in used), *_doubts(device.hardware, kinds)),
    )


def _doubts(hardware: Hardware, kinds: Iterable[Kind]) -> Iterator[str]:
    """Yield what is doubtful for a model's kinds of operations."""
    if hardware.host_experts_ns and any(isinstance(kind, Experts) for kind in kinds):
        yield "what launching experts takes the host was measured of one model, in bfloat16"


def _environment(hardware: Hardware, traced: TracedModel, serving: ServingConfig) -> Environment:
    engine, _, version = hardware.engine.partition(" ")
    return Environment(
        device=hardware.device,
        device_kind="cuda",
        driver="unknown",
        torch_version="unknown",
        engine=engine,
        engine_version=version,
        attention_backend=hardware.attention_backend,
        dtype=serving.dtype,
        kv_cache_dtype=traced.environment.get("kv_cache_dtype", "auto"),
        block_size=BLOCK_SIZE,
        execution_mode=CUDA_GRAPHS,
        quantization=traced.environment.get("quantization"),
        num_threads=None,
    )


@contextmanager
def device_folder(name: str) -> Iterator[Path]:
    """Give the folder of a device whose measurements ship with Dooly, in whatever case, or that `name` is the path of.

    Raises:
        InvalidInputError: There is no such device, and the message names those there are.
    """
    with _data() as data:
        places = (data / name, Path(name), data / name.lower())
        folder = next((place for place in places if (place / "hardware.json").is_file()), None)
        if folder is None:
            known = ", ".join(hardware.name for hardware in listed_hardware())
            raise InvalidInputError(f"--hardware: {name!r} is none of {known}; or profile a device of your own, and use --db")
        yield folder


@contextmanager
def _data() -> Iterator[Path]:
    """Give the folder of the data that ships, as files."""
    with resources.as_file(resources.files("dooly") / "data") as folder:
        yield folder
