"""Bundles of LLMServingSim: layers find their operations, and what finds none is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.imports import build_bundled_device, read_bundle
from dooly.predict import Hardware, load_latency_model
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._fit_hardware import assemble

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.tracing import TracedModel

FACTS = Hardware("made-up", "NVIDIA Made Up", 80 << 30, 1e12, 5e14, 100, 1e12, 0.0, "vllm 0.19.0", "made up")
DENSE = ("act_fn", "down_proj", "embedding", "final_layernorm", "gate_up_proj", "layernorm", "o_proj", "qkv_proj", "rotary_emb")


@pytest.fixture(scope="module")
def table() -> TracedModel:
    """The operations of Llama 3.1 8B on one rank."""
    return operation_table(find_model("llama-3.1-8b"), ServingConfig())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle in which each token takes a microsecond in each layer, and attention one a thousand positions."""
    folder = tmp_path / "tp1"
    folder.mkdir()
    dense = [f"{layer},{tokens},{2 + tokens}" for layer in (*DENSE, "quantum_proj") for tokens in (1, 64, 2048)]
    (folder / "dense.csv").write_text("\n".join(["layer,tokens,time_us", *dense]))
    heads = [f"{layer},{count},{10 + count}" for layer in ("lm_head", "sampler") for count in (1, 64)]
    (folder / "per_sequence.csv").write_text("\n".join(["layer,sequences,time_us", *heads]))
    rows = [
        f"{chunk},{context},{count},{length},{5 + (count * length + chunk * (context + chunk / 2)) / 1000}"
        for chunk, context in ((0, 0), (16, 0), (128, 512), (1024, 0))
        for count, length in ((0, 0), (1, 16), (8, 512), (64, 4096))
        if chunk + count
    ]
    (folder / "attention.csv").write_text("\n".join(["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", *rows]))
    skew = [f"{n},1,0,0,512,4096,{3 * (9 + n)}" for n in (2, 8, 32)]
    (folder / "skew.csv").write_text("\n".join(["n,nb,pc,kp,kvs,kv_big,t_skew_us", *skew]))
    return folder


def test_layers_find_their_operations(bundle: Path, table: TracedModel) -> None:
    """Microseconds become nanoseconds under the operations' signatures; one norm serves all that run the same."""
    found = read_bundle(bundle, table, FACTS)
    signatures = {op.name: op.signature for op in table.operations}
    for name in ("qkv_proj", "o_proj", "rotary_emb", "logits_processor"):
        assert signatures[name] in found.sizes
    sizes, latency_ns = found.sizes[signatures["o_proj"]]
    assert (sizes.tolist(), latency_ns.tolist()) == ([1, 64, 2048], [3000, 66000, 2050000])
    (attention,) = found.attention.values()
    assert attention.num_points == 15 + 3


def test_what_finds_no_place_is_told(bundle: Path, table: TracedModel) -> None:
    """A layer that no operation runs; the last norm, which is the same operation as those of the layers."""
    assert read_bundle(bundle, table, FACTS).unplaced == ("layer final_layernorm", "layer quantum_proj")


def test_a_device_of_bundles_prices_a_step(bundle: Path, table: TracedModel, tmp_path: Path) -> None:
    """All of a decode is measured: 32 layers of eight operations of 3 us and attention, and the head's."""
    out = tmp_path / "out"
    build_bundled_device({bundle: table}, out, FACTS)
    model = assemble(table, DeviceLatencies(out), ServingConfig())
    step = model.step(Batch((1,), (15,)))
    assert step.provenance["measured"] == pytest.approx(1)
    rest_s = step.seconds - step.breakdown_s["model.layers.*.self_attn.attn"]
    assert rest_s == pytest.approx((32 * 8 * 3 + 3 + 3 + 11 + 11) * 1e-6, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("dense.csv", None, r"dense\.csv: cannot be read \(No such file"),
        ("attention.csv", "a,b\n1,2", r"attention\.csv: lacks the column prefill_chunk"),
        ("per_sequence.csv", "", r"per_sequence\.csv: lacks the column layer"),
    ],
)
def test_a_bundle_that_is_none_is_refused(bundle: Path, table: TracedModel, name: str, text: str | None, rule: str) -> None:
    """The message names the file and what it lacks."""
    if text is None:
        (bundle / name).unlink()
    else:
        (bundle / name).write_text(text)
    with pytest.raises(InvalidInputError, match=rule):
        read_bundle(bundle, table, FACTS)


def test_the_shipped_device_holds_the_bundled_models() -> None:
    """Llama 3.1 8B on the device that bundles were measured on is measured through and through."""
    model = load_latency_model(model=find_model("llama-3.1-8b"), hardware="rtxpro6000")
    assert model.step(Batch((1,) * 8, (500,) * 8)).provenance["measured"] == pytest.approx(1)
