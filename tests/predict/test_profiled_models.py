"""Which records of a store answer for a model: its latest trace, its environment, and what is told where none does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dooly.batch import Batch
from dooly.catalog._trace_version import trace_version
from dooly.engines import ModelSource, ServingConfig
from dooly.errors import InvalidInputError, MissingOperationError
from dooly.predict import Interconnect, LatencyModel, load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbstore import Environment, Store


ROOT = Path(__file__).parents[2]


HELD_OUT = (
    Batch((1,) * 5, (100,) * 5),
    Batch((1,) * 7, (33, 90, 200, 14, 60, 301, 5)),
    Batch((75,), (0,), 1),
    Batch((90,), (170,), 1),
    Batch((40, 30), (0, 0), 2),
    Batch((1, 1, 70), (150, 90, 0), 1),
)
"""Batches that the grid does not hold."""


def test_two_models_of_one_store_agree(store: Store, model: ModelSource, serving: ServingConfig, latency: LatencyModel) -> None:
    """Fitting again changes nothing."""
    again = load_latency_model(store, model, serving)
    assert [again.step(batch) for batch in HELD_OUT] == [latency.step(batch) for batch in HELD_OUT]


@pytest.mark.parametrize("name", ["attention", "head", "layer", "step"])
def test_a_missing_operation_is_named(  # noqa: PLR0913, PLR0917 - fixtures
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    serving: ServingConfig,
    tmp_path: Path,
    name: str,
) -> None:
    """The error names the operation that the store lacks and the command that measures it, in one line."""
    store = make_store(tmp_path / "db", environment, without=name)
    with pytest.raises(MissingOperationError, match="not measured on made up with CPU_ATTN") as caught:
        load_latency_model(store, model, serving)
    paths = {"attention": "model.layers.0.attn", "layer": "model.layers.0"}
    assert f"operation {paths.get(name, name)} (" in str(caught.value)
    assert "run `dooly profile made-up --db PATH`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_was_not_profiled_is_named(store: Store, serving: ServingConfig, tmp_path: Path) -> None:
    """Another configuration is another model, and so is another element type."""
    (tmp_path / "config.json").write_text('{"architectures": ["Other"]}')
    with pytest.raises(MissingOperationError, match=r"other: the store holds no profile .* run `dooly profile other"):
        load_latency_model(store, ModelSource("other", tmp_path), serving)


def test_links_and_ranks_are_not_a_profile_s(store: Store, model: ModelSource, serving: ServingConfig) -> None:
    """Profiles are of one rank, without collectives that a link could price."""
    with pytest.raises(InvalidInputError, match="--interconnect: prices the collectives of --hardware and of imported records"):
        load_latency_model(store, model, serving, interconnect=Interconnect(16e9, 20_000.0))
    with pytest.raises(InvalidInputError, match="--tensor-parallel-size: 2 ranks can be traced but not measured"):
        load_latency_model(store, model, replace(serving, tensor_parallel_size=2))


def test_another_element_type_was_not_profiled(store: Store, model: ModelSource, serving: ServingConfig) -> None:
    """Records in bfloat16 do not price steps in float32, and the message says what the store holds."""
    message = "no profile of this model with --dtype float32; it holds one in bfloat16: ask for that with --dtype, or run `dooly"
    with pytest.raises(MissingOperationError, match=message):
        load_latency_model(store, model, replace(serving, dtype="float32"))


def test_the_latest_trace_of_an_environment_counts(
    make_store: Callable[..., Store], environment: Environment, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """Of a model's traces in one environment that of this code counts, else the newest, else the one of the last number."""
    store = make_store(tmp_path / "db", environment)
    (name,) = store.documents("traces")
    document: Any = store.read_document("traces", name)
    stale = document["traced"] | {"operations": document["traced"]["operations"][:1]}
    store.write_document("traces", f"{name}-later", document | {"version": 2})
    for prefix in ("a", "z"):
        store.write_document("traces", f"{prefix}-older", document | {"version": 1, "traced": stale})
    assert len(load_latency_model(store, model, serving).traced.operations) == len(document["traced"]["operations"])
    for at_s, prefix in enumerate(("z", "a")):
        other = document["traced"] | {"model": f"other code {at_s}"}
        store.write_document(
            "traces", f"{prefix}-other", document | {"version": prefix * 32, "written_s": at_s + 1.0, "traced": other}
        )
    assert load_latency_model(store, model, serving).traced.model == "other code 1"
    ours = document["traced"] | {"model": "this code"}
    store.write_document("traces", f"{name}-ours", document | {"version": trace_version(), "traced": ours})
    assert load_latency_model(store, model, serving).traced.model == "this code"


def test_an_environment_that_was_not_profiled_is_told_apart(
    store: Store, environment: Environment, model: ModelSource, serving: ServingConfig
) -> None:
    """Asked for an environment, the error names in what the profile there is differs from it."""
    wanted = replace(environment, driver="2", num_threads=3)
    with pytest.raises(MissingOperationError, match=r"only with other driver \(2 or 1\), num_threads \(3 or 2\); run") as caught:
        load_latency_model(store, model, serving, wanted)
    assert "\n" not in str(caught.value)


def test_several_environments_are_refused(
    make_store: Callable[..., Store], environment: Environment, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """A store of two environments does not tell which is meant; naming the attention backend does."""
    other = replace(environment, attention_backend="OTHER_ATTN")
    store = make_store(tmp_path / "db", environment, other)
    with pytest.raises(
        InvalidInputError, match=r"several environments .*CPU_ATTN.*; choose one with --attention-backend"
    ) as caught:
        load_latency_model(store, model, serving)
    assert "\n" not in str(caught.value)
    assert "OTHER_ATTN" in str(caught.value)
    chosen = load_latency_model(store, model, replace(serving, attention_backend="OTHER_ATTN"))
    assert chosen.environment == other


def test_a_profile_answers_for_what_was_quantised_as_it_was(
    make_store: Callable[..., Store], environment: Environment, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """Full precision does not answer for FP8, nor FP8 for full precision; one store may hold both."""
    eight_bits = replace(environment, quantization="fp8", kv_cache_dtype="fp8")
    store = make_store(tmp_path / "db", environment, eight_bits)
    asked = replace(serving, quantization="fp8", kv_cache_dtype="fp8")
    assert load_latency_model(store, model, serving).environment == environment
    assert load_latency_model(store, model, asked).environment == eight_bits
    with pytest.raises(MissingOperationError, match=r"no profile of this model with --dtype bfloat16 --quantization fp8; run"):
        load_latency_model(store, model, replace(asked, kv_cache_dtype="auto"))
    with pytest.raises(InvalidInputError, match=r"--moe-backend: records are of the kernels that the engine chose"):
        load_latency_model(store, model, replace(serving, moe_backend="marlin"))


def test_a_store_shared_with_a_later_version_stays_readable(
    make_store: Callable[..., Store], environment: Environment, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """What a later version measured, under a field that this one does not know, is an environment of its own."""
    newer = replace(environment, later={"fan": "slow"})
    store = make_store(tmp_path / "db", environment, newer)
    assert load_latency_model(store, model, serving, environment).environment == environment
    assert load_latency_model(store, model, serving, newer).environment == newer
    with pytest.raises(InvalidInputError, match=r"several environments \(fan \((None or slow|slow or None)\)\)"):
        load_latency_model(store, model, serving)


def test_environments_of_other_models_are_not_looked_at(
    make_store: Callable[..., Store], environment: Environment, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """Whatever another model's environment holds, even nothing that this version reads, leaves this one's alone."""
    store = make_store(tmp_path / "db", environment)
    store.write_document("traces", "other", {"model": "other", "config": "other", "environment": "unreadable", "traced": {}})
    assert load_latency_model(store, model, serving).environment == environment


def test_predicting_loads_neither_torch_nor_an_engine(store: Store, model: ModelSource) -> None:
    """A latency model is loaded and used without torch and vLLM."""
    place = store.info().place
    code = (
        "import sys; from pathlib import Path; import dooly; from dbstore import Store; from dooly.engines import ModelSource;"
        f"latency = dooly.load_latency_model(Store.open({place!r}), ModelSource('made-up', Path({str(model.folder)!r})));"
        "print(latency.step_ns(dooly.Batch((1,), (50,))) > 0, *({'torch', 'vllm'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
