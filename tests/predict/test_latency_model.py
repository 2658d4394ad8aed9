from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dbstore import Record
from dooly.batch import Batch
from dooly.predict import BatchArrays, LatencyModel, fit_latency_model, load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbstore import Environment, Store
    from dooly.engines import ModelSource, ServingConfig
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
