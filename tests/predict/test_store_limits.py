"""A store's records of a GPU whose facts ship: its power limit, and products in FP8 that an engine runs without quantising."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from dooly.batch import Batch
from dooly.engines import ServingConfig
from dooly.latency import HostTimes
from dooly.power_cap import PacedDevice
from dooly.predict import LatencyModel, listed_hardware, load_latency_model
from dooly.simulation import SchedulerConfig, parse_workload, simulate
from dooly.tracing import TracedDim, TracedTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbstore import Environment, Store
    from dooly.engines import ModelSource
    from dooly.tracing import TracedOperation

    Load = Callable[..., LatencyModel]

K, N = 4096, 6144
LIMITS = ServingConfig(max_model_len=2048, max_num_batched_tokens=2048, max_num_seqs=4)
PRODUCT, PROMPT = "model.layers.*.qkv", Batch((2047,), (0,), 1)
H200 = next(hardware for hardware in listed_hardware() if hardware.name == "h200")


def _tensor(dtype: str, *sizes: int | str, parameter: bool = False) -> TracedTensor:
    dims = tuple(TracedDim(str(s), "config", s) if isinstance(s, int) else TracedDim(s, "request", None) for s in sizes)
    return TracedTensor(dtype, dims, is_parameter=parameter)


def _layer(operation: Callable[..., TracedOperation]) -> tuple[TracedOperation, TracedOperation]:
    """Return a norm, and the product in FP8 that follows it, of each of three layers."""
    inputs = (
        _tensor("float8_e4m3fn", "num_tokens", K),
        _tensor("float8_e4m3fn", K, N, parameter=True),
        _tensor("float32", N, 1, parameter=True),
    )
    work = {"request_flops": f"{2 * K * N}*num_tokens", "request_bytes": f"{K + 2 * N}*num_tokens + {K * N}"}
    outputs = (_tensor("bfloat16", "num_tokens", N),)
    norm = operation("norm", "model.layers.0.norm", count=3, request_bytes=f"{4 * K}*num_tokens")
    return norm, operation("product", "model.layers.0.qkv", count=3, inputs=inputs, outputs=outputs, **work)


def _product_ns(num_tokens: int) -> float:
    """Return what the product takes with the kernel that quantises, as it is measured alone."""
    return 20_000 + 5_000 * num_tokens


@pytest.fixture(scope="module")
def load(  # noqa: PLR0913, PLR0917 - fixtures
    make_store: Callable[..., Store],
    model: ModelSource,
    environment: Environment,
    operation: Callable[..., TracedOperation],
    laws: dict[str, Callable[[Batch], float]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Load:
    """Return a function that loads the small model with an FP8 product by its records, of an H200 if no other device is named."""
    own = {**laws, "norm": lambda b: 3_000 + 2 * b.num_tokens, "qkv": lambda b: _product_ns(b.num_tokens)}
    known: dict[str, Store] = {}

    def found(device: str = H200.device, **settings: Any) -> LatencyModel:  # noqa: ANN401 - as ServingConfig
        if device not in known:
            place = tmp_path_factory.mktemp("gpu") / "db"
            gpu = replace(environment, device=device, device_kind="cuda")
            known[device] = make_store(place, gpu, laws=own, more=_layer(operation), limits=LIMITS)
        return load_latency_model(known[device], model, replace(LIMITS, **settings))

    return found


def test_records_of_a_known_device_know_its_power_limit(load: Load) -> None:
    """What products that arithmetic bounds take, by their records, at the device's own burst; few tokens draw nothing."""
    latency = load()
    assert (latency.hardware, cap := latency.power_cap) == (None, latency.power_cap)
    assert cap is not None
    assert (cap.burst_ns, cap.slowdown_permille) == (H200.burst_ns, H200.slowdown_permille)
    product_s = latency.step(PROMPT).breakdown_s[PRODUCT]
    assert cap.products_of(2047) == pytest.approx(1e9 * product_s, rel=1e-6)
    assert cap.products_of(256) == 0


def test_where_nothing_is_known_of_a_limit_there_is_none(load: Load, latency: LatencyModel) -> None:
    """An eager engine's records hold what there is, nobody measured another device, and a CPU has none."""
    for unlimited in (load(enforce_eager=True), load("a GPU of nobody"), latency):
        assert unlimited.power_cap is None
        assert unlimited.step(Batch((200,), (0,), 1)).sustained_s is None


def test_a_fused_products_records_are_less_its_quantising_kernel(load: Load) -> None:
    """In graphs by a launch and the bytes of its activations, and then it is no longer measured; eager as it was measured."""
    quantising_ns = H200.launch_ns + 1e9 * 3 * K * 2047 / H200.moved_bytes_per_s
    for latency, source, expected_ns in (
        (load(), "family", _product_ns(2047) - quantising_ns),
        (load(enforce_eager=True), "measured", _product_ns(2047)),
        (load("a GPU of nobody"), "measured", _product_ns(2047)),
    ):
        parts = latency.step(PROMPT).by_source_s
        assert [key for key in parts if key[0] == PRODUCT] == [(PRODUCT, source)]
        assert parts[PRODUCT, source] == pytest.approx(3 * expected_ns / 1e9, rel=0.003)
        assert ("model.layers.*.norm", "measured") in parts


def test_a_store_is_simulated_under_its_devices_limit(load: Load) -> None:
    """Prompts behind each other take what a paced device says, and the result how much of it the limit adds."""
    latency, device, now_ns = load(), PacedDevice(load().power_cap), 0
    for _ in range(8):
        now_ns += device.run_ns(now_ns, latency.step_ns(PROMPT), PROMPT.num_tokens)
    workload = parse_workload("poisson:rate=inf,requests=8,prompt=2047,output=1")
    config = SchedulerConfig(max_model_len=2048, max_num_batched_tokens=2047, max_num_seqs=4, num_kv_blocks=2000)
    found = simulate(workload, latency, config, HostTimes())
    assert found.power_limit_s == pytest.approx(device.slowed_ns / 1e9)
    assert found.duration_s == pytest.approx(now_ns / 1e9)
    assert 0.02 < found.power_limit_s / found.duration_s < 0.15
