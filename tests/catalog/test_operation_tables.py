"""Tables of operations without a profile: shipped ones, the user's cache, and what neither may give."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dooly.catalog import (
    _operation_tables,
    _table,
    operation_table,
    operations_here,
    shipped_file,
    trace_operations,
    write_table,
)
from dooly.engines import ModelSource, ServingConfig, find_model
from dooly.errors import EngineError, MissingOperationError
from dooly.tracing import TracedDim, TracedModel, TracedTensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.tracing import TracedOperation


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an engine."""

    def refuse(*_: object) -> TracedModel:
        raise EngineError("engine vllm: not installed")

    monkeypatch.setattr(_operation_tables, "trace_operations", refuse)
    monkeypatch.setattr(_operation_tables, "installed_version", lambda _: None)


def _other(tmp_path: Path) -> ModelSource:
    """Return a model of a listed name with another configuration."""
    folder = tmp_path / "llama-3.1-8b"
    folder.mkdir()
    config = find_model("llama-3.1-8b").config | {"num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return find_model(str(folder))


@pytest.mark.usefixtures("untraced")
def test_listed_models_ship_at_every_number_of_ranks() -> None:
    """A rank's part of the layers, with the collectives that join them."""
    for ranks in (1, 2, 4, 8):
        table = operation_table(find_model("llama-3.1-70b"), ServingConfig(tensor_parallel_size=ranks))
        assert table.environment["tensor_parallel_size"] == ranks
        assert any(op.name == "all_reduce" for op in table.operations) == (ranks > 1)


@pytest.mark.usefixtures("untraced", "cache")
def test_a_name_is_not_enough(tmp_path: Path) -> None:
    """A model of a listed name and another configuration is not given the shipped table."""
    with pytest.raises(
        MissingOperationError, match=r"llama-3\.1-8b: its table .* does not ship .* needs the engine [^;]*; .*\[cpu\]'`$"
    ):
        operation_table(_other(tmp_path), ServingConfig())


@pytest.mark.usefixtures("untraced", "cache")
def test_what_ships_is_named() -> None:
    """Where only the element types lack a table, those that have one are told."""
    ways = (
        "or give what ships: neither --quantization nor --kv-cache-dtype; --quantization fp8; "
        "--quantization fp8 --kv-cache-dtype fp8"
    )
    with pytest.raises(MissingOperationError, match=rf"1 rank, awq does not ship .*, {ways}$"):
        operation_table(find_model("llama-3.1-8b"), ServingConfig(quantization="awq"), "h200")


@pytest.mark.usefixtures("untraced", "cache")
def test_an_engine_that_is_there_speaks_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the engine is installed but failed, as when its process was killed, nobody is told to install it."""
    monkeypatch.setattr(_operation_tables, "installed_version", lambda _: "0.32.0")
    with pytest.raises(EngineError, match=r"^engine vllm: not installed$"):
        operation_table(_other(tmp_path), ServingConfig())


def test_a_trace_is_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What was traced once, of which a line tells, is read from the cache; a file that was cut off is traced anew."""
    model, shipped = _other(tmp_path), operation_table(find_model("llama-3.1-8b"), ServingConfig())
    calls = []

    def trace(source: ModelSource, *_: object) -> TracedModel:
        calls.append(source.name)
        return replace(shipped, model=source.name)

    monkeypatch.setattr(_operation_tables, "trace_operations", trace)
    monkeypatch.setattr(_operation_tables, "installed_version", lambda _: "0.32.0")
    tables = [operation_table(model, ServingConfig()) for _ in range(2)]
    assert len(calls) == 1
    assert caplog.messages == ["llama-3.1-8b: tracing it with the engine, once for these settings: half a minute or more"]
    assert tables[0].to_json() == tables[1].to_json()
    (file,) = (cache / "dooly" / "tables").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    operation_table(model, ServingConfig())
    operation_table(model, ServingConfig(tensor_parallel_size=2))
    assert len(calls) == 3


@pytest.mark.usefixtures("cache")
def test_what_other_code_traced_is_traced_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in the cache is read by the code that made it only."""
    model, shipped = _other(tmp_path), operation_table(find_model("llama-3.1-8b"), ServingConfig())
    calls = []
    monkeypatch.setattr(_operation_tables, "trace_operations", lambda source, *_: calls.append(source) or shipped)
    for version in ("now", "now", "then", "now"):
        monkeypatch.setattr(_operation_tables, "trace_version", lambda version=version: version)
        operation_table(model, ServingConfig())
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_loses_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the cache's folder would be: the traced table is returned all the same."""
    cache.write_text("no folder")
    shipped = operation_table(find_model("llama-3.1-8b"), ServingConfig())
    monkeypatch.setattr(_operation_tables, "trace_operations", lambda *_: shipped)
    assert operation_table(_other(tmp_path), ServingConfig()) == shipped


@pytest.mark.engine
def test_a_shipped_table_is_what_this_code_traces() -> None:
    """Whoever changes what tracing finds makes the shipped tables anew: `python scripts/build_data.py tables`."""
    model, serving = find_model("smollm2-135m"), ServingConfig()
    assert trace_operations(model, serving).operations == operation_table(model, serving).operations


def test_a_shipped_table_is_what_was_written(tmp_path: Path) -> None:
    """Writing a table again gives the same content."""
    model, serving = find_model("mistral-7b-v0.3"), ServingConfig()
    table = operation_table(model, serving)
    file = tmp_path / "t.json.xz"
    write_table(table, model, file)
    assert lzma.decompress(file.read_bytes()) == lzma.decompress(shipped_file(model, serving).read_bytes())


def test_quantising_activations_is_part_of_the_layer(
    operation: Callable[..., TracedOperation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear layer that calls a module of its own for it stays one operation; what else makes bytes stays what it is."""
    eight_bits = TracedTensor("float8_e4m3fn", (TracedDim("num_tokens", "request", None),), is_parameter=False)
    found = (
        operation("product", "model.layers.0.proj", request_flops="2*num_tokens"),
        operation("within", "model.layers.0.proj.method.quant", outputs=(eight_bits,)),
        operation("beside", "model.layers.0.norm", outputs=(eight_bits,)),
    )
    monkeypatch.setattr(_table, "trace_model", lambda *_, **__: TracedModel("m", {}, found))
    names = [
        op.signature for op in trace_operations(find_model("llama-3.1-8b"), ServingConfig()).operations if op.stage != "engine"
    ]
    assert names == ["product", "beside"]


@pytest.mark.usefixtures("untraced")
def test_a_quantised_table_is_of_a_capability(cache: Path) -> None:
    """What is quantised is traced for a GPU: a table of one capability answers for no other, nor for full precision."""
    model = find_model("llama-3.1-70b")
    for ranks in (1, 8):
        serving = ServingConfig(tensor_parallel_size=ranks, quantization="fp8")
        tables = [operation_table(model, serving, hardware) for hardware in ("h100", "h200")]
        assert [table.environment["quantization"] for table in tables] == ["fp8", "fp8"]
        assert tables[0].operations == tables[1].operations
    for hardware in ("b200", None):
        with pytest.raises(MissingOperationError, match="does not ship"):
            operation_table(model, serving, hardware)
    assert not cache.exists()


@pytest.mark.parametrize(("device", "quantization"), [("NVIDIA H200", "fp8"), ("NVIDIA H200", None), ("NVIDIA GH200", None)])
def test_a_gpu_that_tables_are_made_for_is_measured_by_its_table(
    device: str, quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So its records lie under the signatures that ship; any other device traces the model itself."""
    import torch

    traced = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device)
    monkeypatch.setattr(_operation_tables, "trace_operations", lambda *given: traced.append(given))
    model, serving = find_model("llama-3.1-8b"), ServingConfig(quantization=quantization)
    table = operations_here(model, serving)
    if device == "NVIDIA GH200":
        assert (table, traced) == (None, [(model, serving)])
        return
    own = replace(serving, engine="transformers")
    assert operations_here(model, own) is None
    assert traced.pop() == (model, own), "what ships is vLLM's"
    assert table.operations == operation_table(model, serving, "h200").operations
    assert (table.environment["device"], table.environment["platform"], traced) == (device, "cuda", [])
