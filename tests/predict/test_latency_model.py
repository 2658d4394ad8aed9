from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbstore import Record
from dooly.batch import Batch
from dooly.catalog._trace_version import trace_version
from dooly.engines import ModelSource, ServingConfig
from dooly.errors import InvalidInputError, MissingOperationError, OutOfDomainError, UnsupportedModelError
from dooly.predict import BatchArrays, Interconnect, LatencyModel, fit_latency_model, load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbstore import Environment, Store
    from dooly.tracing import TracedOperation

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


@pytest.fixture(scope="module")
def latency(store: Store, model: ModelSource, serving: ServingConfig) -> LatencyModel:
    """The latency model of the small model."""
    return load_latency_model(store, model, serving)


@pytest.mark.parametrize("batch", HELD_OUT, ids=str)
def test_a_step_follows_the_laws(latency: LatencyModel, law_ns: Callable[[Batch], float], batch: Batch) -> None:
    """Steps that were not measured are predicted within a few percent of what their operations take by law."""
    step = latency.step(batch)
    assert step.seconds == pytest.approx(law_ns(batch) / 1e9, rel=0.05)
    assert 0 < step.uncertainty_s < 0.1 * step.seconds
    assert not step.extrapolated


@pytest.mark.parametrize(
    ("dims", "cost", "law"),
    [
        (("32*num_tokens",), "4096*num_tokens", lambda b: 5_000 + 32 * 40 * b.num_tokens),
        (("floor(num_tokens/2) + 1",), "4096*num_tokens", lambda b: 5_000 + 900 * b.num_tokens),
        (("num_tokens", "num_reqs"), "512*num_tokens*num_reqs", lambda b: 5_000 + 300 * b.num_tokens * b.num_reqs),
        (("num_reqs*num_tokens",), "512*num_tokens*num_reqs", lambda b: 5_000 + 300 * b.num_tokens * b.num_reqs),
        ((), "1024", lambda _: 700_000),
    ],
    ids=["expression", "rounded expression", "two counts", "their product", "none"],
)
def test_an_operation_follows_its_law_over_whatever_sizes_it(  # noqa: PLR0913, PLR0917 - fixtures
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    serving: ServingConfig,
    operation: Callable[..., TracedOperation],
    laws: dict[str, Callable[[Batch], float]],
    tmp_path: Path,
    dims: tuple[str, ...],
    cost: str,
    law: Callable[[Batch], float],
) -> None:
    """An operation over an expression, over tokens and requests, or over neither is fitted and priced by all it sees."""
    more = (operation("m", "more", request_dims=dims, request_flops=cost, request_bytes=cost),)
    store = make_store(tmp_path / "db", environment, laws={**laws, "more": law}, more=more)
    latency = load_latency_model(store, model, serving)
    for batch in HELD_OUT:
        assert latency.step(batch).breakdown_s["more"] == pytest.approx(law(batch) / 1e9, rel=0.05)
    assert latency.steps_ns(BatchArrays.of(HELD_OUT)).tolist() == [latency.step_ns(batch) for batch in HELD_OUT]
    graphs = fit_latency_model(store, latency.traced, environment, in_graphs=True)
    padded = law(SimpleNamespace(num_tokens=8, num_reqs=5))  # type: ignore[arg-type]
    assert graphs.step(Batch((1,) * 5, (100,) * 5)).breakdown_s["more"] == pytest.approx(padded / 1e9, rel=0.05)


def test_what_a_layer_runs_several_times_counts_so_often(  # noqa: PLR0913, PLR0917 - fixtures
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    serving: ServingConfig,
    operation: Callable[..., TracedOperation],
    laws: dict[str, Callable[[Batch], float]],
    tmp_path: Path,
) -> None:
    """Two heads in each of three layers run six times in a step, and the layers' other modules three times as before."""
    more = (operation("h", "model.layers.0.heads.0.query", count=6),)
    store = make_store(tmp_path / "db", environment, laws={**laws, "query": lambda _: 9_000.0}, more=more)
    traced = load_latency_model(store, model, serving).traced
    seconds = fit_latency_model(store, traced, environment, in_graphs=True).step(HELD_OUT[2]).breakdown_s
    assert seconds["model.layers.*.heads.*.query"] == pytest.approx(6 * 9_000 / 1e9, rel=0.01)
    assert seconds["model.layers.*.up"] == pytest.approx(3 * laws["up"](HELD_OUT[2]) / 1e9, rel=0.1)


@pytest.mark.parametrize(("trees", "within"), [(True, True), (False, False)])
def test_bent_laws_need_the_trees(  # noqa: PLR0913, PLR0917 - fixtures
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    serving: ServingConfig,
    bent_laws: dict[str, Callable[[Batch], float]],
    bent_law_ns: Callable[[Batch], float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trees: bool,  # noqa: FBT001 - a case
    within: bool,  # noqa: FBT001 - the expected answer
) -> None:
    """Where operations bend as rooflines do, whole steps are right with the trees, and off by more without them."""
    if not trees:
        monkeypatch.setattr("dooly.predict._regressor._MIN_POINTS", 10**9)
    latency = load_latency_model(make_store(tmp_path / "db", environment, laws=bent_laws), model, serving)
    errors = [abs(latency.step_ns(batch) / bent_law_ns(batch) - 1) for batch in HELD_OUT]
    assert (max(errors) < 0.05) == within


def test_a_profile_of_single_requests_knows_what_runs_once_a_request(
    make_store: Callable[..., Store], environment: Environment, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """Where steps hold one request at most, its point of sampling is all there is, and no cause for doubt."""
    limits = replace(serving, max_num_seqs=1)
    latency = load_latency_model(make_store(tmp_path / "db", environment, limits=limits), model, limits)
    step = latency.step(Batch((75,), (0,), 1))
    assert step.uncertainty_s < 0.02 * step.seconds


def test_a_point_alone_leaves_a_step_uncertain(
    make_store: Callable[..., Store], environment: Environment, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """A store that knows an operation at one size only says that it hardly knows steps of others."""
    store = make_store(tmp_path / "db", environment, without="head")
    store.write(Record("head-signature", environment.digest, {"d0": 1}, np.array([30_000])))
    step = load_latency_model(store, model, serving).step(Batch((1,) * 5, (100,) * 5))
    assert step.uncertainty_s >= step.breakdown_s["head"]


def test_a_step_is_as_unsure_as_the_operations_in_its_layers(  # noqa: PLR0913, PLR0917 - fixtures
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    serving: ServingConfig,
    laws: dict[str, Callable[[Batch], float]],
    tmp_path: Path,
) -> None:
    """A layer that follows its operations exactly where they were measured says nothing of them elsewhere."""

    def rough(batch: Batch) -> float:
        return (20_000 + 300 * batch.num_tokens) * (1 + 0.5 * np.random.default_rng(batch.num_tokens).random())

    rough_laws = {**laws, "up": rough}
    latency = load_latency_model(make_store(tmp_path / "db", environment, laws=rough_laws), model, serving)
    steps = [latency.step(Batch((num_tokens,), (0,), 1)) for num_tokens in range(9, 256, 7)]
    off_s = [
        abs(3 * rough(Batch((n,), (0,), 1)) / 1e9 - s.breakdown_s["model.layers.*.up"])
        for n, s in zip(range(9, 256, 7), steps, strict=True)
    ]
    assert 0.5 < np.median(off_s) / np.median([step.uncertainty_s for step in steps]) < 2


@pytest.mark.parametrize("batch", HELD_OUT, ids=str)
def test_the_breakdown_adds_up(latency: LatencyModel, batch: Batch) -> None:
    """Each operation has its seconds, over all its runs; together they are the step."""
    step = latency.step(batch)
    layers = {f"model.layers.*.{name}" for name in ("up", "attn", "down")}
    assert set(step.breakdown_s) == layers | {"model.embed", "head", "sampler", "layer", "step"}
    assert sum(step.breakdown_s.values()) == pytest.approx(step.seconds, rel=1e-12)
    up_ns = 3 * (20_000 + 300 * batch.num_tokens)
    assert step.breakdown_s["model.layers.*.up"] == pytest.approx(up_ns / 1e9, rel=0.05)
    assert round(step.seconds * 1e9) == pytest.approx(latency.step_ns(batch), abs=1)


requests = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 400)), min_size=1, max_size=8)


@given(st.lists(requests, min_size=1, max_size=5), st.integers(0, 1))
def test_steps_agree_alone_and_together(latency: LatencyModel, many: list[list[tuple[int, int]]], fresh: int) -> None:
    """`steps_ns` gives each batch what `step_ns` gives it."""
    batches = [Batch(*zip(*pairs, strict=True), fresh) for pairs in many]  # type: ignore[arg-type]
    together = latency.steps_ns(BatchArrays.of(batches))
    assert together.tolist() == [latency.step_ns(batch) for batch in batches]
    assert together.dtype == np.int64


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(1, 20))
def test_a_decode_run_agrees_with_its_steps(latency: LatencyModel, contexts: list[int], num_steps: int) -> None:
    """`decode_run_ns` gives each step what `step_ns` gives its batch."""
    steps = [Batch((1,) * len(contexts), tuple(c + i for c in contexts)) for i in range(num_steps)]
    run = latency.decode_run_ns(np.array(contexts), num_steps)
    assert run.tolist() == [latency.step_ns(batch) for batch in steps]


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
    """Records in bfloat16 do not price steps in float32."""
    with pytest.raises(MissingOperationError, match="no profile of this model with --dtype float32"):
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


@pytest.mark.parametrize(
    "batch",
    [Batch((400,), (0,), 1), Batch((1,) * 20, (50,) * 20), Batch((1,), (5_000,))],
    ids=["tokens", "requests", "context"],
)
def test_outside_what_was_measured(latency: LatencyModel, batch: Batch) -> None:
    """A batch beyond the measured tokens, requests or context is refused with what to do, or flagged where asked."""
    for predict in (latency.step, latency.step_ns):
        with pytest.raises(OutOfDomainError, match=r"were measured; profile made-up with a larger --max") as caught:
            predict(batch)
        assert "\n" not in str(caught.value)
    step = latency.step(batch, extrapolate=True)
    assert step.extrapolated
    assert np.isfinite(step.seconds)
    assert step.seconds > latency.step(Batch((1,), (16,))).seconds


@pytest.fixture(scope="module")
def small_memory(
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    serving: ServingConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> LatencyModel:
    """The small model on a device whose cache holds 1,000 tokens, so that no larger batch could be measured."""
    path = tmp_path_factory.mktemp("small-memory") / "db"
    store = make_store(path, environment, where=lambda b: b.num_tokens + sum(b.num_computed_tokens) <= 1000)
    return load_latency_model(store, model, serving)


@pytest.mark.parametrize(
    ("batch", "extrapolated"),
    [
        (Batch((1,) * 8, (100,) * 8), False),
        (Batch((1,) * 2, (445,) * 2), False),
        (Batch((1,) * 8, (400,) * 8), True),
        (Batch((1,) * 7 + (64,), (400,) * 7 + (0,), 1), True),
        (Batch((250,), (250,), 1), False),
        (Batch((128, 128), (380, 380), 2), True),
        (Batch((250,), (0,), 1), False),
    ],
    ids=["decodes", "long decodes", "many long decodes", "among a prefill", "a chunk behind a context", "two", "a prompt"],
)
def test_attention_beyond_what_it_was_measured_to_is_flagged(
    small_memory: LatencyModel, batch: Batch, *, extrapolated: bool
) -> None:
    """Within the limits of steps, contexts may still add up to more than any that was measured: priced, and said so."""
    assert small_memory.step(batch).extrapolated == extrapolated
    before, total = small_memory.extrapolated_ns, sum(small_memory.priced_ns.values())
    assert small_memory.step_ns(batch) == pytest.approx(1e9 * small_memory.step(batch).seconds, abs=1)
    priced = sum(small_memory.priced_ns.values()) - total
    assert small_memory.extrapolated_ns - before == pytest.approx(priced if extrapolated else 0)
    assert small_memory.extrapolated_share is not None
    assert 0 <= small_memory.extrapolated_share <= 1


def test_an_extrapolation_follows_the_laws(latency: LatencyModel, law_ns: Callable[[Batch], float]) -> None:
    """At four times the measured tokens the prediction is still near: it extrapolates by work done."""
    batch = Batch((256,) * 4, (0,) * 4, 4)
    assert latency.step(batch, extrapolate=True).seconds == pytest.approx(law_ns(batch) / 1e9, rel=0.15)


def test_a_run_that_leaves_the_domain_is_refused(latency: LatencyModel) -> None:
    """A decode run whose last steps are too long is refused as a whole."""
    with pytest.raises(OutOfDomainError):
        latency.decode_run_ns(np.array([latency.domain.context - 5]), 10)


@pytest.mark.parametrize(("dtype", "item_bytes"), [("bfloat16", 2), ("float32", 4)])
def test_kv_blocks_by_hand(latency: LatencyModel, serving: ServingConfig, dtype: str, item_bytes: int) -> None:
    """A block holds 16 tokens' keys and values of 2 heads of 32 in 3 layers; the cache holds so many as fit whole."""
    block_bytes = 16 * 2 * (32 + 32) * 3 * item_bytes
    assert latency.block_size == 16
    for number in (1, 7, 1000):
        exact = replace(serving, dtype=dtype, kv_cache_memory_bytes=number * block_bytes)
        assert latency.num_kv_blocks(exact) == number
        assert latency.num_kv_blocks(replace(exact, kv_cache_memory_bytes=(number + 1) * block_bytes - 1)) == number


def test_windows_take_blocks_of_their_own(
    latency: LatencyModel, serving: ServingConfig, operation: Callable[..., TracedOperation]
) -> None:
    """Five layers with a window beside three without: groups of three, so that a block is as large as before."""
    window = {"num_kv_heads": 2, "head_size": 32, "head_size_v": 32, "kv_cache_dtype": "auto", "sliding_window": 128}
    other = operation("o", "model.layers.1.mixer", stateful=True, count=5, attributes=window)
    model = copy.copy(latency)
    model.traced = replace(latency.traced, operations=(*latency.traced.operations, other))
    kinds = [group.kind.value for group in model.kv_cache_layout(serving).groups]
    assert kinds == ["full_attention", "sliding_window", "sliding_window"]
    assert model.num_kv_blocks(serving) == latency.num_kv_blocks(serving)


def test_a_cache_that_is_not_modelled_is_refused(
    latency: LatencyModel, serving: ServingConfig, operation: Callable[..., TracedOperation]
) -> None:
    """No number of blocks would be right; a given one stands."""
    attributes = {"kind": "IndexerCache", "num_kv_heads": None}
    other = operation("o", "model.layers.1.mixer", stateful=True, count=5, attributes=attributes)
    model = copy.copy(latency)
    model.traced = replace(latency.traced, operations=(*latency.traced.operations, other))
    with pytest.raises(UnsupportedModelError, match=r"^made-up: model\.layers\.1\.mixer and 4 like it keeps a cache of its own"):
        model.num_kv_blocks(serving)
    assert model.num_kv_blocks(replace(serving, num_gpu_blocks_override=77)) == 77


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


def test_many_steps_are_priced_as_one_by_one(latency: LatencyModel) -> None:
    """Arrays of batches give what each batch gives alone: seconds, uncertainty, parts and provenance."""
    many = latency.steps(HELD_OUT)
    assert len(many) == len(HELD_OUT)
    for index, batch in enumerate(HELD_OUT):
        one = latency.step(batch)
        assert many[index].breakdown_s == pytest.approx(one.breakdown_s, rel=1e-12)
        assert many[index].provenance == pytest.approx(one.provenance, rel=1e-12)
        assert many[index].by_source_s == pytest.approx(one.by_source_s, rel=1e-12)
        assert many[index].uncertainty_s == pytest.approx(one.uncertainty_s, rel=1e-12)
        assert many.seconds[index] == pytest.approx(latency.step_ns(batch) / 1e9, rel=1e-6)
        assert sum(one.breakdown_s.values()) == pytest.approx(one.seconds)
        assert sum(one.provenance.values()) == pytest.approx(1)
    arrays = BatchArrays.checked([[1, 1, 70]], [[150, 90, 0]])
    assert latency.steps(arrays)[0] == latency.step(Batch((1, 1, 70), (150, 90, 0)))


def test_a_run_of_decodes_is_its_steps(latency: LatencyModel) -> None:
    """Consecutive decodes, in seconds, are the steps whose contexts grow by one."""
    run = latency.decode_run([33, 90], 3)
    assert run.seconds == pytest.approx([latency.step(Batch((1, 1), (33 + grown, 90 + grown), 0)).seconds for grown in range(3)])
    assert run.seconds == pytest.approx(latency.decode_run_ns(np.array([33, 90]), 3) / 1e9, rel=1e-6)


def test_only_the_batch_beyond_is_extrapolated(latency: LatencyModel) -> None:
    """One batch beyond the limits makes many a refusal, and asked to extrapolate, is the only one that is flagged."""
    batches = [Batch((100,), (0,)), Batch((100_000,), (0,))]
    with pytest.raises(OutOfDomainError, match="100000 tokens where"):
        latency.steps(batches)
    assert latency.steps(batches, extrapolate=True).extrapolated.tolist() == [False, True]


@pytest.mark.parametrize(
    ("new", "computed", "fresh", "rule"),
    [
        ([1], [0], None, r"shapes \(1,\) and \(1,\); give both"),
        ([[1]], [[0, 1]], None, r"shapes \(1, 1\) and \(1, 2\); give both"),
        ([[1.5]], [[0]], None, "give whole numbers"),
        ([[1]], [[0]], [1, 1], "one a batch"),
        ([[1]], [[-1]], None, "a count is negative"),
        ([[1], [0]], [[0], [0]], None, "a batch has no request"),
    ],
)
def test_arrays_that_are_no_batches_are_refused(new: Any, computed: Any, fresh: Any, rule: str) -> None:  # noqa: ANN401
    """The message says what arrays of batches are."""
    with pytest.raises(InvalidInputError, match=rule):
        BatchArrays.checked(new, computed, fresh)


def test_what_is_no_batch_is_refused(latency: LatencyModel) -> None:
    """A list of pairs, which is no batch, is quoted with what to give; so is one among many."""
    for price in (lambda: latency.step([(1, 10)]), lambda: latency.steps([Batch((1,), (10,)), [(1, 10)]])):  # type: ignore[arg-type, list-item]
        with pytest.raises(InvalidInputError, match=r"^step: \[\(1, 10\)\] is no batch; give dooly\.Batch\(num_new_tokens, "):
            price()


def test_no_steps_are_refused(latency: LatencyModel) -> None:
    """No batch, no step and no context of decodes are input errors."""
    with pytest.raises(InvalidInputError, match="no batch"):
        latency.steps([])
    for contexts, steps in (([], 1), ([3], 0), ([-1], 1), ([[1]], 1)):
        with pytest.raises(InvalidInputError, match="give a step, and contexts"):
            latency.decode_run(contexts, steps)  # type: ignore[arg-type]  # as a caller may
