"""Devices whose measurements ship: what their answers stand on, and what they refuse."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from dooly.batch import Batch
from dooly.catalog import operation_table, shipped_file
from dooly.engines import ServingConfig, find_model, listed_models
from dooly.errors import InvalidInputError, OutOfDomainError
from dooly.latency import slowed_host
from dooly.predict import (
    BatchArrays,
    LatencyModel,
    OperationWork,
    default_serving,
    listed_hardware,
    load_latency_model,
    with_limits,
)
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._fit_hardware import device_folder
from dooly.predict._memory import peak_activation_bytes, weight_bytes
from dooly.speculation import SpeculativeConfig
from dooly.tracing import TracedModel

SERVING = ServingConfig(max_model_len=8192, max_num_batched_tokens=2048, max_num_seqs=256, tensor_parallel_size=4)


@pytest.fixture(scope="module")
def large() -> LatencyModel:
    """Llama 3.1 70B on four H200."""
    return load_latency_model(model=find_model("llama-3.1-70b"), serving=SERVING, hardware="h200")


def test_every_device_names_its_source_and_the_notice_names_the_device() -> None:
    """Facts are positive, and NOTICE has each folder of data."""
    notice = (resources.files("dooly") / "data" / "NOTICE").read_text()
    devices = listed_hardware()
    assert {"h100", "h200", "rtxpro6000"} <= {device.name for device in devices}
    for device in devices:
        assert f"{device.name}/" in notice or f"{device.name}," in notice
        assert device.source
        assert min(device.memory_bytes, device.memory_bytes_per_s, device.flops_per_s, device.launch_ns) > 0


def test_what_ships_stays_small() -> None:
    """All devices and tables together, as files of a wheel."""
    root = Path(str(resources.files("dooly"))) / "data"
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) < 20_000_000


def test_a_decode_takes_no_less_than_its_bytes(large: LatencyModel) -> None:
    """One decode reads all weights of a rank: no faster than the memory's datasheet, and no slower than twice that here."""
    step = large.step(Batch((1,), (1000,)))
    least_s = weight_bytes(large.traced) / 4.8e12
    assert least_s < step.seconds < 2 * least_s
    assert weight_bytes(large.traced) == pytest.approx(141.1e9 / 4, rel=0.02)


def test_an_answer_says_where_its_seconds_are_from(large: LatencyModel) -> None:
    """Collectives are measured, products and attention are of families, norms are estimated; the shares add up."""
    step = large.step(Batch((1,) * 32, (1000,) * 32))
    assert sum(step.provenance.values()) == pytest.approx(1)
    assert all(share > 0 for share in step.provenance.values())
    assert step.provenance["family"] > 0.5
    assert "model.layers.*.mlp.down_proj.all_reduce" in step.breakdown_s
    assert sum(step.breakdown_s.values()) == pytest.approx(step.seconds)
    assert 0 < step.uncertainty_s < 0.2 * step.seconds


def test_many_steps_are_priced_as_one_by_one(large: LatencyModel) -> None:
    """The simulator's path and the breakdown agree to a nanosecond, and shares are kept of all that was priced."""
    contexts = np.array([100, 900, 3000])
    steps = large.decode_run_ns(contexts, 4)
    alone = [large.step(Batch((1, 1, 1), tuple(map(int, contexts + i)))).seconds for i in range(4)]
    assert steps == pytest.approx([round(1e9 * seconds) for seconds in alone], abs=1)
    assert sum(large.provenance.values()) == pytest.approx(1)


def test_more_work_takes_longer(large: LatencyModel) -> None:
    """Steps grow with tokens, with context and with requests."""
    prefills = [large.step(Batch((n,), (0,), 1)).seconds for n in (64, 256, 1024, 2048)]
    contexts = [large.step(Batch((1,) * 64, (c,) * 64)).seconds for c in (128, 1024, 8000)]
    requests = [large.step(Batch((1,) * n, (2000,) * n)).seconds for n in (1, 16, 64, 256)]
    for seconds in (prefills, contexts, requests):
        assert seconds == sorted(seconds)


def test_blocks_fill_what_memory_has_left(large: LatencyModel) -> None:
    """Weights, activations and 1 GiB come off the share of memory; an override and a given size win."""
    left = 0.92 * 150_119_844_413 - weight_bytes(large.traced) - peak_activation_bytes(large.traced, SERVING) - (1 << 30)
    block_bytes = large.kv_cache_layout(SERVING).block_bytes
    assert block_bytes == 16 * 80 * 2 * 2 * 128 * 2
    assert large.num_kv_blocks(SERVING) == int(left) // block_bytes
    given = ServingConfig(tensor_parallel_size=4, kv_cache_memory_bytes=100 * block_bytes)
    assert large.num_kv_blocks(given) == 100
    assert large.num_kv_blocks(ServingConfig(tensor_parallel_size=4, num_gpu_blocks_override=7)) == 7


def test_attention_of_a_measured_shape_knows_unequal_decodes() -> None:
    """On a device with tables of its own, many unequal decodes take longer than equal ones of the same sum."""
    model = load_latency_model(
        model=find_model("llama-3.1-8b"), hardware="rtxpro6000", serving=ServingConfig(max_model_len=32768)
    )
    equal = model.step(Batch((1,) * 32, (1024,) * 32))
    unequal = model.step(Batch((1,) * 32, (*(512,) * 28, *(4608,) * 4)))
    assert equal.provenance["measured"] == pytest.approx(1)
    assert unequal.seconds > equal.seconds


def test_latent_attention_and_shared_experts_are_of_families() -> None:
    """Decodes cost more the more they read, prompts by their pairs; half the heads of two ranks take less."""
    one, two = (
        load_latency_model(
            model=find_model("deepseek-v2-lite"),
            serving=ServingConfig(tensor_parallel_size=n, max_model_len=16384),
            hardware="h200",
        )
        for n in (1, 2)
    )
    name = "model.layers.*.self_attn.mla_attn.mla_attn"
    near, far = (one.step(Batch((1,) * 32, (context,) * 32)).breakdown_s[name] for context in (256, 16000))
    assert 2 * near < far
    first, chunk = (one.step(Batch((2048,), (context,))).breakdown_s[name] for context in (0, 8192))
    assert 1.5 * first < chunk
    batch = Batch((2048,), (0,))
    assert 0.4 < two.step(batch).breakdown_s[name] / one.step(batch).breakdown_s[name] < 0.9
    assert one.step(batch).provenance["family"] > 0.9


def test_a_mixture_of_experts_is_of_a_family() -> None:
    """More tokens reach more experts, up to all of them; a decode reads only those that its token goes to."""
    model = load_latency_model(model=find_model("qwen3-30b-a3b"), hardware="h200")

    def experts_s(num_reqs: int) -> float:
        breakdown = model.step(Batch((1,) * num_reqs, (100,) * num_reqs)).breakdown_s
        return breakdown["model.layers.*.mlp.experts"]

    times = [experts_s(n) for n in (1, 8, 64)]
    assert times == sorted(times)
    assert times[2] > 3 * times[0]
    all_weights_s = 48 * 128 * 3 * 2048 * 768 * 2 / 4.8e12
    assert all_weights_s * 8 / 128 < times[0] < times[2] < 2.5 * all_weights_s


def test_a_quantised_model_is_priced_as_such() -> None:
    """Weights of a byte are read in half the time and a cache of a byte holds twice the tokens; the environment says both."""
    model = find_model("llama-3.1-8b")
    full, quantised = (
        load_latency_model(model=model, serving=serving, hardware="h200")
        for serving in (
            ServingConfig(max_model_len=8192, **given) for given in ({}, {"quantization": "fp8", "kv_cache_dtype": "fp8"})
        )
    )
    found = quantised.environment
    assert (found.quantization, found.kv_cache_dtype) == ("fp8", "fp8")
    assert (full.environment.quantization, full.environment.kv_cache_dtype) == (None, "auto")
    assert weight_bytes(quantised.traced) < 0.57 * weight_bytes(full.traced)
    blocks = [latency.kv_cache_layout(ServingConfig(max_model_len=8192)).block_bytes for latency in (full, quantised)]
    assert blocks[0] == 2 * blocks[1]
    steps = [m.step(Batch((1,) * 8, (4000,) * 8)) for m in (full, quantised)]
    ratios = {name: seconds / steps[0].breakdown_s[name] for name, seconds in steps[1].breakdown_s.items()}
    assert 0.45 < ratios["model.layers.*.mlp.gate_up_proj"] < 0.7
    assert 0.4 < ratios["model.layers.*.self_attn.attn"] < 1
    assert set(steps[0].breakdown_s) == set(steps[1].breakdown_s)
    assert ratios["logits_processor"] == pytest.approx(1)


def test_a_window_bounds_what_decodes_read() -> None:
    """Of layers that alternate, those with a window take as long behind any context, the others longer behind a longer one."""
    model = load_latency_model(model=find_model("gpt-oss-20b"), serving=ServingConfig(max_model_len=65_536), hardware="h200")

    def attention_ns(context: int) -> list[float]:
        arrays = BatchArrays.of([Batch((1,) * 32, (context,) * 32)])
        parts = model._parts.of(arrays, lambda fitted: fitted.latency_ns(arrays))
        return [float(part.latency_ns[0]) for part in parts if "attn.attn" in part.name]

    short, long = attention_ns(1000), attention_ns(60_000)
    grown = sorted(after / before for before, after in zip(short, long, strict=True))
    assert grown[0] == pytest.approx(1, abs=0.1)
    assert grown[-1] > 10


def test_a_device_of_few_models_answers_for_others_by_their_families() -> None:
    """What two models took tells of a third's widths and heads, and the answer says by how little."""
    model = load_latency_model(
        model=find_model("mistral-7b-v0.3"), serving=ServingConfig(max_model_len=8192), hardware="rtxpro6000"
    )
    step = model.step(Batch((1,) * 8, (1000,) * 8))
    assert step.provenance["family"] > 0.02  # its head and its embedding: the rest is as wide as Llama's
    llama = load_latency_model(
        model=find_model("llama-3.1-8b"), serving=ServingConfig(max_model_len=8192), hardware="rtxpro6000"
    ).step(Batch((1,) * 8, (1000,) * 8))
    assert 0.8 < step.seconds / llama.seconds < 1.05


def test_what_was_measured_of_single_operations_finds_its_operation() -> None:
    """Each signature that ships with a device is that of an operation in a table that ships: else it would never be used."""
    known = {
        op.signature
        for model in listed_models()
        for ranks in (1, 2)
        if (file := shipped_file(model, ServingConfig(tensor_parallel_size=ranks))).is_file()
        for op in TracedModel.from_json(json.loads(lzma.decompress(file.read_bytes()))["traced"]).operations
    }
    for device in listed_hardware():
        with device_folder(device.name) as folder:
            assert DeviceLatencies(folder).measured.keys() <= known


def test_a_router_in_float32_is_estimated() -> None:
    """No table times products in float32: one takes what one in bfloat16 would at its bytes, give or take half."""
    table = operation_table(find_model("llama-3.1-8b"), ServingConfig())
    plain = next(op for op in table.operations if op.name == "o_proj")
    inputs = tuple(replace(t, dtype="float32") if t.is_parameter else t for t in plain.inputs)
    with device_folder("h200") as folder:
        device = DeviceLatencies(folder)
        found = device.of(replace(plain, inputs=inputs, signature="router"), "made-up")
        family = device.of(replace(plain, signature="plain"), "made-up")
    batches = BatchArrays.of([Batch((16,), (0,))])
    assert (found.source, found.relative_error, family.source) == ("estimated", 0.5, "family")
    ratio = found.latency_ns(OperationWork(plain), batches)[0] / family.latency_ns(OperationWork(plain), batches)[0]
    assert 1.2 < ratio < 2.5


def test_other_limits_share_what_is_fitted() -> None:
    """A model under other limits, larger or smaller, prices each step, and the KV cache, as one that is loaded for them."""
    model = find_model("llama-3.1-8b")
    settings = ({}, {"max_num_batched_tokens": 512, "max_num_seqs": 16}, {"max_num_batched_tokens": 16_384, "max_num_seqs": 300})
    base = load_latency_model(model=model, serving=default_serving(model, "h200"), hardware="h200")
    for limits in settings:
        serving = default_serving(model, "h200", **limits)
        shared, alone = with_limits(base, serving), load_latency_model(model=model, serving=serving, hardware="h200")
        most, reqs = serving.max_num_batched_tokens, serving.max_num_seqs
        for batch in (Batch((1,) * 7, (900,) * 7), Batch((most - 5, 1), (0, 40), 1), Batch((1,) * reqs, (9,) * reqs)):
            assert shared.step_ns(batch) == alone.step_ns(batch)
        assert shared.host == alone.host
        assert shared.num_kv_blocks(serving) == alone.num_kv_blocks(serving)
        with pytest.raises(OutOfDomainError):
            shared.step_ns(Batch((most + 1,), (0,), 1))


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_other_limits_keep_a_slower_host(factor: float) -> None:
    """What a host takes is as it was said of the model, but for the graphs that it has captured; nobody's host stays nobody's."""
    model = find_model("llama-3.1-8b")
    base = load_latency_model(model=model, serving=default_serving(model, "h200"), hardware="h200")
    serving = default_serving(model, "h200", max_num_batched_tokens=512, max_num_seqs=16)
    alone = load_latency_model(model=model, serving=serving, hardware="h200")
    base.host = slowed_host(base.host, factor)
    shared = with_limits(base, serving)
    assert shared.host == slowed_host(alone.host, factor)
    assert with_limits(shared, serving).host == shared.host
    base.host = None
    assert with_limits(base, serving).host is None


def test_a_store_s_latencies_take_no_other_limits() -> None:
    """They were measured within limits of their own: the message says whose have none."""
    model = find_model("llama-3.1-8b")
    serving = default_serving(model, "h200")
    measured = load_latency_model(model=model, serving=serving, hardware="h200")
    measured.hardware = None  # as a store's
    with pytest.raises(InvalidInputError, match=r"with_limits: the latencies of llama-3\.1-8b are a store's"):
        with_limits(measured, serving)


DRAFTED = SpeculativeConfig("ngram", 3, (0.8, 0.6, 0.4))


def test_a_verified_draft_costs_its_products_and_logits() -> None:
    """On a GPU whose attention reads keys once, drafts add rows to products and logits, and nothing to attention."""
    model = find_model("llama-3.1-8b")
    serving = default_serving(model, "h200", speculative_config=DRAFTED)
    latency = load_latency_model(model=model, serving=serving, hardware="h200")
    verified = latency.step(Batch((4,) * 16, (997,) * 16, 0, (3,) * 16))
    decoded = latency.step(Batch((1,) * 16, (1000,) * 16, 0))
    wide = latency.step(Batch((1,) * 64, (1000,) * 64, 0))
    (attention,) = (name for name in decoded.breakdown_s if name.endswith(".attn"))
    assert verified.breakdown_s[attention] == decoded.breakdown_s[attention]
    others = {name: seconds for name, seconds in verified.breakdown_s.items() if name != attention}
    assert others == pytest.approx({name: wide.breakdown_s[name] for name in others})
    assert decoded.seconds < verified.seconds < wide.seconds


def test_drafts_are_within_what_the_engine_allows() -> None:
    """All requests may verify all their drafts at once, and not one more."""
    model = find_model("llama-3.1-8b")
    serving = default_serving(model, "h200", speculative_config=DRAFTED, max_num_seqs=8)
    latency = load_latency_model(model=model, serving=serving, hardware="h200")
    assert latency.step_ns(Batch((4,) * 8, (100,) * 8, 0, (3,) * 8)) > 0
    assert not latency.schedules_ahead
    with pytest.raises(OutOfDomainError, match="36 requests and drafts where 32 are allowed"):
        latency.step_ns(Batch((4,) * 9, (100,) * 9, 0, (3,) * 9))


def test_a_device_goes_by_any_case() -> None:
    """`H200` is `h200`; what is no device is still named as it was typed."""
    model = find_model("llama-3.1-8b")
    assert default_serving(model, "H200") == default_serving(model, "h200")
    with pytest.raises(InvalidInputError, match=r"^--hardware: 'H9000' is none of h100, "):
        default_serving(model, "H9000")
