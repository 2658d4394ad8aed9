"""Importing into a store: records under the model's own signatures, once, that price its steps and say what they stand on."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import dooly
from dbstore import Store
from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError, MissingOperationError, OutOfDomainError
from dooly.imports import build_bundled_device, import_measurements
from dooly.predict import Interconnect, LatencyModel, listed_hardware, load_latency_model
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._fit_hardware import assemble

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.tracing import TracedModel

    Write = Callable[[Path, str, list[dict[str, Any]]], None]

LLAMA = find_model("llama-3.1-8b")
BATCHES = [Batch((1,), (15,)), Batch((1,) * 8, (500,) * 8), Batch((1,) * 32, (64,) * 16 + (4000,) * 16), Batch((700,), (0,))]
BATCHES += [Batch((*(1,) * 8, 128), (*(511,) * 8, 512)), Batch((700, 300), (0, 0))]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "db", "a")


def test_importing_again_adds_nothing(store: Store, bundle: Path) -> None:
    """Each point of each operation is one record, known by its content, in a compacted store too."""
    first = import_measurements(store, bundle, LLAMA, tool="llmservingsim")
    assert (first.num_records, first.num_added, first.num_operations) == (3 * 9 + 2 * 2 + 18, 49, 12)
    (attention,) = {key for key in store.keys() if len(store.points(*key)) == 18}  # noqa: SIM118 - no mapping
    store.compact(*attention)
    again = import_measurements(store, bundle.parent, LLAMA, tool="llmservingsim")
    assert (again.num_records, again.num_added) == (49, 0)
    assert store.info().num_records == 49
    assert store.verify() == ()


def test_a_record_says_where_its_rows_are(store: Store, bundle: Path) -> None:
    """Records of attention are of the one file or the other."""
    digest = import_measurements(store, bundle, LLAMA, tool="llmservingsim").environment.digest
    (attention,) = (op for op in operation_table(LLAMA, ServingConfig()).operations if op.name == "attn")
    rows = [record.attributes["rows"] for record in store.read(attention.signature, digest)]
    assert (rows.count("attention.csv"), rows.count("skew.csv")) == (15, 3)


def test_what_is_unknown_stays_so(store: Store, bundle: Path) -> None:
    """The environment has what the files tell, who measured and under which licence, and None for the rest."""
    found = import_measurements(store, bundle, LLAMA, tool="llmservingsim").environment
    assert found.source == "LLMServingSim (casys-kaist/LLMServingSim), MIT, CASYS Lab at KAIST"
    assert (found.driver, found.torch_version, found.attention_backend) == (None, None, None)
    assert (found.device, found.execution_mode) == ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "eager")


def test_what_is_fitted_to_rows_is_kept(store: Store, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and families are fitted once: the next load has the very same, without a record and without CatBoost."""
    import_measurements(store, bundle, LLAMA, tool="llmservingsim")
    expected = [load_latency_model(store, LLAMA).step(batch, extrapolate=True) for batch in BATCHES]
    assert store.documents("regressors")
    monkeypatch.setitem(sys.modules, "catboost", None)  # importing it fails
    monkeypatch.setattr(Store, "read", None)
    latency = load_latency_model(Store.open(store.info().place), LLAMA)
    assert [latency.step(batch, extrapolate=True) for batch in BATCHES] == expected
    assert store.verify() == ()


def test_a_killed_import_is_finished_by_the_next(store: Store, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that were written stay; until the model is there too, the store does not hold it."""
    write, left = Store.write, [3]

    def killed(self: Store, *records: Any) -> None:  # noqa: ANN401 - records
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, *records)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            import_measurements(store, bundle, LLAMA, tool="llmservingsim")
    with pytest.raises(MissingOperationError, match="holds no profile of this model"):
        load_latency_model(store, LLAMA)
    done = import_measurements(store, bundle, LLAMA, tool="llmservingsim")
    assert 0 < done.num_added < done.num_records
    assert load_latency_model(store, LLAMA).step(BATCHES[0]).seconds > 0


def test_imported_records_price_steps_as_the_shipped_device_would(
    store: Store, bundle: Path, table: TracedModel, tmp_path: Path
) -> None:
    """One bundle, read into a store and into a device's data: steps of all kinds are alike to half a percent, and measured."""
    import_measurements(store, bundle, LLAMA, tool="llmservingsim")
    imported = load_latency_model(store, LLAMA)
    (facts,) = (device for device in listed_hardware() if device.name == "rtxpro6000")
    build_bundled_device({bundle: table}, tmp_path / "device", replace(facts))
    shipped = assemble(table, DeviceLatencies(tmp_path / "device"), ServingConfig(max_model_len=8192))
    for batch in BATCHES:
        step = imported.step(batch)
        assert step.seconds == pytest.approx(shipped.step(batch).seconds, rel=5e-3)
        assert step.provenance["measured"] == pytest.approx(1)
    assert imported.schedules_ahead
    assert imported.block_size == 16


def test_steps_beyond_the_files_are_refused(store: Store, bundle: Path) -> None:
    """The domain is what all measured operations know: tokens of the layers, requests of the head, contexts of attention."""
    import_measurements(store, bundle, LLAMA, tool="llmservingsim")
    model = load_latency_model(store, LLAMA)
    assert (model.domain.num_tokens, model.domain.num_reqs, model.domain.context) == (1024 + 64, 64, 4096)
    with pytest.raises(OutOfDomainError, match="65 requests where 64 were measured"):
        model.step(Batch((1,) * 65, (10,) * 65))


def test_what_was_not_measured_goes_by_its_family_or_its_bytes(store: Store, profiles: Path) -> None:
    """Vidur's profiles have neither a head, which other products tell of, nor a sampler, which moves bytes."""
    result = import_measurements(store, profiles, LLAMA, tool="vidur")
    assert result.without_rows == ("logits_processor", "sampler")
    step = load_latency_model(store, LLAMA).step(Batch((1,) * 4, (512,) * 4))
    assert set(result.without_rows) <= set(step.breakdown_s)
    assert all(step.provenance[source] > 0 for source in ("measured", "family", "estimated"))
    assert step.breakdown_s["model.layers.*.mlp.gate_up_proj"] == pytest.approx(32 * 100.004e-6, rel=1e-3)
    assert step.breakdown_s["model.layers.*.self_attn.attn"] == pytest.approx(32 * 14.05e-6, rel=0.1)


def test_tables_price_what_they_lack(store: Store, folder: Path) -> None:
    """No pair of Llama's widths is in the tables: all its products are of the family; attention is of its own rows."""
    serving = ServingConfig(tensor_parallel_size=8)
    import_measurements(store, folder, LLAMA, replace(serving, tensor_parallel_size=4), tool="aiconfigurator")
    with pytest.raises(MissingOperationError, match=r"holds nothing of this model over 8 ranks; import it with `dooly db import"):
        load_latency_model(store, LLAMA, serving)
    four = replace(serving, tensor_parallel_size=4)
    link = Interconnect(450e9, 100.0)
    step = load_latency_model(store, LLAMA, four, interconnect=link).step(Batch((1,) * 4, (255,) * 4))
    assert step.provenance["family"] > 0.5
    assert step.breakdown_s["model.layers.*.self_attn.attn"] == pytest.approx(32 * 5.01e-6, rel=0.1)
    with pytest.raises(MissingOperationError, match=r"\(all_gather, all_gather\) has no records .* --interconnect"):
        load_latency_model(store, LLAMA, four)


def test_tables_of_a_known_device_have_its_power_limit(store: Store, folder: Path) -> None:
    """Prompts draw on it by what their products take, which are most of a step; a device of nobody's facts has none."""
    serving, link = ServingConfig(tensor_parallel_size=4), Interconnect(450e9, 100.0)
    import_measurements(store, folder, LLAMA, serving, tool="aiconfigurator")
    latency = load_latency_model(store, LLAMA, serving, interconnect=link)
    (device,) = (hardware for hardware in listed_hardware() if hardware.name == "h200")
    assert latency.power_cap is not None
    assert (latency.power_cap.burst_ns, latency.power_cap.products_of(1)) == (device.burst_ns, 0)
    step = latency.step(Batch((2000,), (0,)))
    products_ns = 1e9 * sum(step.breakdown_s[f"model.layers.*.{name}"] for name in ("self_attn.qkv_proj", "mlp.gate_up_proj"))
    assert products_ns < latency.power_cap.products_of(2000) < 1e9 * step.seconds


def test_attention_of_other_heads_goes_by_those_in_the_store(store: Store, folder: Path) -> None:
    """What one model's attention took tells another's, as a ratio to the roofline; and the answer says so."""
    import_measurements(store, folder, LLAMA, ServingConfig(tensor_parallel_size=4), tool="aiconfigurator")
    with pytest.raises(MissingOperationError, match=r"self_attn\.attn .* has no records"):
        _qwen(Store.open(folder / "other", "a"), folder)
    step = _qwen(store, folder).step(Batch((1,) * 4, (255,) * 4))
    assert step.breakdown_s["model.layers.*.self_attn.attn"] > 0
    assert step.provenance["measured"] < 0.5


def _qwen(store: Store, folder: Path) -> LatencyModel:
    """Import and load a model of 14 heads and 2 key/value heads of 64, which the tables have not."""
    model = find_model("qwen2.5-0.5b")
    import_measurements(store, folder, model, tool="aiconfigurator")
    return load_latency_model(store, model)


def test_a_head_whose_widths_are_in_the_tables_goes_by_requests(store: Store, folder: Path, write_rows: Write) -> None:
    """The same product over tokens, of no model, does not take its place."""
    layers = [(128256 // 4, 4096), (1536, 4096), (4096, 1024), (7168, 4096)]
    sizes = [(m, n, k) for m in (1, 8, 64) for n, k in layers]
    rows = [{"gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": 0.01 + m * n / 1e8} for m, n, k in sizes]
    write_rows(folder, "gemm", rows)
    serving = ServingConfig(tensor_parallel_size=4)
    import_measurements(store, folder, LLAMA, serving, tool="aiconfigurator")
    model = load_latency_model(store, LLAMA, serving, interconnect=Interconnect(450e9, 100.0))
    for num_reqs in (1, 8):
        step = model.step(Batch((1,) * num_reqs, (255,) * num_reqs))
        assert step.breakdown_s["logits_processor"] == pytest.approx(1e-3 * (0.01 + num_reqs * 32064 / 1e8), rel=1e-3)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"tool": "splitwise"}, r"--format: 'splitwise' is none of llmservingsim, aiconfigurator, vidur"),
        ({"serving": ServingConfig(pipeline_parallel_size=2)}, r"--pipeline-parallel-size: 2 ranks can be traced but"),
        ({"path": "nowhere"}, r"nowhere: holds neither mlp\.csv nor attention\.csv"),
        ({"model": find_model("qwen2.5-0.5b")}, r"no row is of an operation of qwen2\.5-0\.5b in bfloat16"),
        ({"store": "db"}, r"dooly\.import_measurements: store: 'db' is no open store"),
    ],
)
def test_wrong_arguments_are_one_line(store: Store, profiles: Path, given: dict[str, Any], rule: str) -> None:
    """The message names the flag or the file, and what to give."""
    arguments = {"store": store, "path": profiles, "model": LLAMA, "tool": "vidur"} | given
    with pytest.raises(InvalidInputError, match=rule) as caught:
        dooly.imports.import_measurements(**arguments)
    assert "\n" not in str(caught.value)


def test_a_device_that_the_files_do_not_tell_is_asked_for(store: Store, profiles: Path) -> None:
    """Outside of Vidur's own folders the device must be named."""
    moved = profiles.rename(profiles.parents[3] / "llama")
    with pytest.raises(InvalidInputError, match=r"llama: does not tell the device; name it with --device"):
        import_measurements(store, moved, LLAMA, tool="vidur")
    result = import_measurements(store, moved, LLAMA, tool="vidur", device="NVIDIA A100-SXM4-80GB")
    assert result.environment.device == "NVIDIA A100-SXM4-80GB"


def test_eager_engines_and_links_are_refused_where_nothing_tells(store: Store, profiles: Path) -> None:
    """Imported kernels do not tell what launching them one by one takes."""
    import_measurements(store, profiles, LLAMA, tool="vidur")
    with pytest.raises(InvalidInputError, match=r"--enforce-eager: Vidur .* tells what kernels take"):
        load_latency_model(store, LLAMA, ServingConfig(enforce_eager=True))


def test_what_ships_of_a_device_tells_what_tables_leave_out(store: Store, folder: Path) -> None:
    """Its tables have no sampler, whose time bytes do not tell; that of such a device ships."""
    serving = ServingConfig(tensor_parallel_size=4)
    import_measurements(store, folder, LLAMA, serving, tool="aiconfigurator")
    imported = load_latency_model(store, LLAMA, serving, interconnect=Interconnect(16e9, 20_000))
    shipped = load_latency_model(model=LLAMA, serving=serving, hardware="h200")
    steps = [model.step(Batch((1,) * 4, (2,) * 4)) for model in (imported, shipped)]
    assert steps[0].breakdown_s["sampler"] == pytest.approx(steps[1].breakdown_s["sampler"], rel=0.02)
    assert steps[0].by_source_s["sampler", "estimated"] > 0
