"""What devices whose measurements ship refuse, or answer with a warning."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

import dooly
from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError, MissingOperationError
from dooly.predict import (
    default_serving,
    listed_hardware,
    load_latency_model,
)
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._fit_hardware import assemble, device_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_an_unknown_device_lists_those_there_are() -> None:
    """The message names the flag, the value and the choices."""
    with pytest.raises(InvalidInputError, match="--hardware: 'h300' is none of h100, h200, rtxpro6000"):
        load_latency_model(model=find_model("llama-3.1-8b"), hardware="h300")


@pytest.mark.parametrize("text", ["{}", "{", "[]", "3", '{"host": 1}'])
def test_a_folder_without_the_facts_of_a_device_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    """Anybody may write one, and name it as a device."""
    (tmp_path / "hardware.json").write_text(text)
    with pytest.raises(InvalidInputError, match=r"^\S+hardware\.json: holds no facts of a device \(.+\); build it again$"):
        load_latency_model(model=find_model("llama-3.1-8b"), hardware=str(tmp_path))


def test_what_nothing_covers_is_named() -> None:
    """No mixture of experts was measured on this device: the operation is named, and what would measure it."""
    with pytest.raises(MissingOperationError, match=r"qwen3-30b-a3b: .*experts .* has no family .*dooly profile"):
        load_latency_model(model=find_model("qwen3-30b-a3b"), hardware="rtxpro6000")


def test_ranks_without_a_collective_are_refused_unless_a_link_is_stated() -> None:
    """A device without measured collectives says so, and takes a stated link."""
    serving, model = ServingConfig(tensor_parallel_size=2), find_model("llama-3.1-8b")
    with pytest.raises(
        MissingOperationError, match=r"all_reduce over 2 ranks; rtxpro6000 has it over none only; .*--interconnect"
    ):
        load_latency_model(model=model, serving=serving, hardware="rtxpro6000")
    link = dooly.predict.Interconnect.parse("bandwidth=16,latency=20")
    linked = load_latency_model(model=model, serving=serving, hardware="rtxpro6000", interconnect=link)
    assert linked.step(Batch((1,), (10,))).provenance["estimated"] > 0.1


def test_weights_beyond_the_memory_are_refused() -> None:
    """The message names both sizes and the way out."""
    serving = ServingConfig()
    model = load_latency_model(model=find_model("llama-3.1-70b"), serving=serving, hardware="h100")
    with pytest.raises(InvalidInputError, match=r"its weights take 141\.1 GB of a rank, h100 gives 78\.1 GB .*--tensor-parallel"):
        model.num_kv_blocks(serving)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"hardware": "h200"}, "model: None is no model"),
        ({"model": find_model("llama-3.1-8b"), "hardware": "h200", "store": object()}, "hardware stands in place of a store"),
        ({"model": find_model("llama-3.1-8b")}, "neither a store nor hardware is given; give dooly.Store.open"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, object], rule: str) -> None:
    """Each in one line."""
    with pytest.raises(InvalidInputError, match=rule):
        load_latency_model(**arguments)  # type: ignore[arg-type]


def test_the_eager_engine_is_refused_for_shipped_devices() -> None:
    """What ships tells kernels, not launches."""
    with pytest.raises(InvalidInputError, match=r"--enforce-eager: what ships of h200"):
        load_latency_model(model=find_model("llama-3.1-8b"), serving=ServingConfig(enforce_eager=True), hardware="h200")


@pytest.mark.parametrize("dtype", ["fp8_e5m2", "int8_per_token_head", "none"])
def test_a_cache_that_nobody_measured_is_refused(dtype: str) -> None:
    """The message names the flag, the value and the choices, before anything is traced."""
    choices = "bfloat16, float16, fp8, fp8_e4m3, and auto is one of these"
    with pytest.raises(InvalidInputError, match=rf"^--kv-cache-dtype: .* of {choices}; '{dtype}' is none; choose"):
        load_latency_model(model=find_model("llama-3.1-8b"), serving=ServingConfig(kv_cache_dtype=dtype), hardware="h200")


@pytest.mark.engine
@pytest.mark.parametrize("hardware", [device.name for device in listed_hardware()])
def test_limits_are_those_that_vllm_starts_with(hardware: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine says of a platform with the device's name and memory; what is given wins."""
    pytest.importorskip("vllm")
    from vllm.engine import arg_utils
    from vllm.usage.usage_lib import UsageContext

    (device,) = (found for found in listed_hardware() if found.name == hardware)
    platform = SimpleNamespace(
        get_device_total_memory=lambda: device.memory_bytes,
        get_device_name=lambda: device.device,
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    monkeypatch.setattr(arg_utils, "current_platform", platform)
    tokens, requests = (limits[UsageContext.OPENAI_API_SERVER] for limits in arg_utils.EngineArgs.get_batch_defaults(1))
    model = find_model("qwen3-32b")
    serving = default_serving(model, hardware, tensor_parallel_size=2)
    assert (serving.max_num_batched_tokens, serving.max_num_seqs, serving.tensor_parallel_size) == (tokens, requests, 2)
    assert serving.max_model_len == model.max_model_len
    assert default_serving(model, hardware, max_num_seqs=7).max_num_seqs == 7


def test_limits_that_are_given_bound_those_that_are_not() -> None:
    """As in vLLM: no more requests than tokens in a step, and no more tokens than the requests can have."""
    model = find_model("llama-3.1-8b")
    assert default_serving(model, "h200", max_num_batched_tokens=64).max_num_seqs == 64
    assert default_serving(model, "h200", max_num_seqs=1, max_model_len=1024).max_num_batched_tokens == 1024
    assert default_serving(model, "h200", max_num_seqs=2, max_num_batched_tokens=4096).max_num_batched_tokens == 4096
    with pytest.raises(InvalidInputError, match=r"^--max-num-seqs: -4 is not at least 1$"):
        default_serving(model, "h200", max_num_seqs=-4)


def test_steps_beyond_what_was_measured_are_flagged() -> None:
    """A device's tables end somewhere: in tokens of a step, in what decodes read, in what prefills compare."""
    model = find_model("llama-3.1-8b")
    rtx = load_latency_model(model=model, hardware="rtxpro6000")
    assert not rtx.step(Batch((2048,), (0,))).extrapolated
    assert rtx.step(Batch((4096,), (0,))).extrapolated
    h200 = load_latency_model(model=model, hardware="h200")
    assert not h200.step(Batch((8192,), (0,))).extrapolated
    assert h200.step(Batch((1,) * 1024, (100_000,) * 1024)).extrapolated
    assert h200.extrapolated_share == 0
    h200.step_ns(Batch((1,) * 1024, (100_000,) * 1024))
    assert h200.extrapolated_share == 1


def test_what_is_doubtful_is_told_where_it_is_used() -> None:
    """Products in FP8 by blocks have a note in the tables' devices; a model without such products has none."""
    model, serving = find_model("llama-3.1-8b"), ServingConfig(max_model_len=8192)
    with device_folder("h200") as folder:
        device = DeviceLatencies(folder)
        assert list(device.hardware.notes) == ["linear-fp8_block"]
        assert assemble(operation_table(model, serving), device, serving).notes == ()
        device.hardware = replace(device.hardware, notes={"linear": "doubtful", "experts": "not used"})
        assert assemble(operation_table(model, serving), device, serving).notes == ("doubtful",)


def test_a_name_is_no_model() -> None:
    """A model's name in place of the model is quoted, with what to give."""
    with pytest.raises(InvalidInputError, match=r"^default_serving: 'llama-3\.1-70b' is no model; give dooly\.find_model"):
        default_serving("llama-3.1-70b", "h200")  # type: ignore[arg-type]
