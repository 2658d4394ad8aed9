"""Sparse sweeps: what lies between measured points is told by the family's process, and regressors learn from both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dbstore import JsonObject, Record
from dooly.batch import Batch
from dooly.catalog import Known, feasible_records, measurement_batches, point_of
from dooly.engines import ServingConfig
from dooly.predict import BatchArrays, load_latency_model
from dooly.predict._filled import fill
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dbstore import Environment, Store
    from dooly.engines import ModelSource
    from dooly.tracing import TracedOperation

    Found = tuple[list[TracedOperation], dict[str, tuple]]

HELD_OUT = (Batch((1,) * 5, (100,) * 5), Batch((75,), (0,), 1), Batch((90,), (170,), 1), Batch((1, 1, 70), (150, 90, 0), 1))


def _is_kept(batch: Batch, limits: ServingConfig) -> bool:
    """Tell whether a thinned grid keeps a batch: the corners, and every third token count."""
    most = max(b.num_tokens for b in measurement_batches(limits))
    longest = max(n + c for n, c in zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True))
    is_corner = batch.num_tokens in {1, most} or batch.num_reqs == limits.max_num_seqs or longest >= limits.max_model_len - 66
    return is_corner or batch.num_tokens % 3 == 0


def _operations(store: Store, environment: Environment) -> Found:
    (name,) = (name for name in store.documents("traces") if name.endswith(environment.digest))
    traced = TracedModel.from_json(store.read_document("traces", name)["traced"])  # type: ignore[arg-type]
    operations = [operation for operation in traced.operations if operation.stage != "engine"]
    records = {op.signature: feasible_records(store, op, environment, "there", ("", "")) for op in operations}
    return operations, records


@pytest.fixture
def thinned(make_store: Callable[..., Store], environment: Environment, serving: ServingConfig, tmp_path: Path) -> Store:
    """A store with a third of the grid's records."""
    return make_store(tmp_path / "db", environment, where=lambda batch: _is_kept(batch, serving))


def test_what_was_not_measured_is_told_by_the_rest(
    thinned: Store, environment: Environment, serving: ServingConfig, laws: dict[str, Callable[[Batch], float]]
) -> None:
    """Points between the measured ones follow the laws, and so do measured ones that are held out."""
    operations, records = _operations(thinned, environment)
    found = fill(operations, records, measurement_batches(serving))
    assert found
    batches = {op.signature: {point_of(op, batch): batch for batch in measurement_batches(serving)} for op in operations}
    for operation in (op for op in operations if op.signature in found):
        filled = found[operation.signature]
        count, latency_ns = filled.num_measured, filled.whole.latency_ns
        assert len(filled.points) == len(set(filled.points)) > count
        told = zip(filled.points[count:], latency_ns[count:], strict=True)
        law = laws[operation.name]
        errors = [abs(ns / law(batches[operation.signature][point]) - 1) for point, ns in told]
        assert np.median(errors) < 0.05
        assert np.array_equal(filled.whole.importance == 1, np.arange(len(filled.points)) < count)
        held = np.concatenate([fold.held for fold in filled.folds])
        assert sorted(held) == list(range(count))
        for fold in filled.folds:  # it is told of no point that it is judged by
            told_anew = np.union1d(fold.held, np.arange(count, len(filled.points)))
            assert (fold.importance[told_anew] < 1).all()
            np.testing.assert_array_equal(np.delete(fold.latency_ns - latency_ns, told_anew), 0)
            assert np.median(np.abs(fold.latency_ns[fold.held] / latency_ns[fold.held] - 1)) < 0.2


def test_a_whole_grid_is_left_as_it_is(store: Store, environment: Environment, serving: ServingConfig) -> None:
    """Where all of the grid's points were measured, nothing is filled up."""
    assert fill(*_operations(store, environment), measurement_batches(serving)) == {}


def test_a_model_of_sparse_sweeps_follows_the_laws(
    thinned: Store, model: ModelSource, serving: ServingConfig, law_ns: Callable[[Batch], float]
) -> None:
    """Steps are predicted within a few percent, from a third of the points."""
    latency = load_latency_model(thinned, model, serving)
    for batch in HELD_OUT:
        step = latency.step(batch)
        assert step.seconds == pytest.approx(law_ns(batch) / 1e9, rel=0.06)
        assert step.provenance["measured"] + step.provenance["family"] == pytest.approx(1)
        assert 0 < step.uncertainty_s < 0.1 * step.seconds


def _waiting_attention_ns(batch: Batch) -> float:
    """Return what attention takes that waits for its longest decode, and reads its first tokens slowly: no sum of its terms."""
    pairs = list(zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True))
    decodes = [n + c for n, c in pairs if n == 1]
    prefills = sum(900 + 2 * (n * c + n * (n + 1) / 2) * (1 + 400 / n) for n, c in pairs if n > 1)
    return 4_000 + prefills + (25 * max(decodes) * len(decodes) ** 0.6 if decodes else 0)


def test_the_error_that_is_given_is_what_prices_it(
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    laws: dict[str, Callable[[Batch], float]],
    tmp_path: Path,
) -> None:
    """Attention by base and trees is off, where nobody measured, by about what it says: not by what the process would be."""
    limits = ServingConfig(max_model_len=4096, max_num_batched_tokens=2048, max_num_seqs=64)
    grid = measurement_batches(limits)
    rng = np.random.default_rng(0)
    kept = {b for b in grid if rng.random() < 0.4 or b.num_tokens in {1, 2048} or b.num_reqs == 64}
    where = kept.__contains__
    store = make_store(
        tmp_path / "db", environment, limits=limits, laws={**laws, "attention": _waiting_attention_ns}, where=where
    )
    (attention,) = (f for f in load_latency_model(store, model, limits).operations if f.name.endswith("attn"))
    rest = [batch for batch in grid if batch not in kept]
    truth = np.array([_waiting_attention_ns(batch) for batch in rest])
    errors = np.abs(attention.latency_ns(BatchArrays.of(rest)) / truth - 1)
    regressor = attention.latency.regressor  # type: ignore[attr-defined]
    assert 0.5 < regressor.relative_error / np.median(errors) < 3
    assert 0.5 < regressor.relative_error_p90 / np.quantile(errors, 0.9) < 3
    assert 0.8 < regressor.coverage <= 1
    assert regressor.num_points == len(store.points("attention-signature", environment.digest))


@pytest.mark.parametrize("is_sparse", [True, False])
def test_what_is_mostly_filled_up_is_from_the_family(  # noqa: PLR0913, PLR0917 - fixtures
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    serving: ServingConfig,
    tmp_path: Path,
    is_sparse: bool,  # noqa: FBT001 - a case
) -> None:
    """An operation with more points by the process than by records does not call its latency measured; any other does."""
    where = (lambda b: b.num_tokens in {1, 96, 256}) if is_sparse else (lambda b: _is_kept(b, serving))
    store = make_store(tmp_path / "db", environment, where=where)
    filled = fill(*_operations(store, environment), measurement_batches(serving))
    told = {s for s, found in filled.items() if len(found.points) > 2 * found.num_measured}
    assert bool(told) == is_sparse
    assert filled
    latency = load_latency_model(store, model, serving)
    assert {f.operation.signature for f in latency.operations if f.latency.source == "family"} == told
    own = [f for f in latency.operations if f.operation.signature not in told]
    assert {f.latency.source for f in own} <= {"measured"}
    from_family_s = sum(
        f.operation.count * f.latency_ns(BatchArrays.of([Batch((75,), (0,), 1)]))[0] / 1e9
        for f in latency.operations
        if f not in own
    )
    step = latency.step(Batch((75,), (0,), 1))
    assert step.provenance["family"] == pytest.approx(from_family_s / step.seconds)


LIMITS = ServingConfig(max_model_len=512, max_num_batched_tokens=256, max_num_seqs=8)
TOKENS = tuple(sorted({batch.num_tokens for batch in measurement_batches(LIMITS)}))


def _humped_ns(width: float, tokens: int) -> float:
    """Return what a member of a family takes, by its width: around 128 tokens all of them are slow."""
    return width * (6000 + 40.0 * tokens) * (1 + 0.5 * float(np.exp(-((np.log(tokens / 128) / 0.4) ** 2))))


def test_other_models_tell_what_lies_between(operation: Callable[..., TracedOperation]) -> None:
    """Where nobody measured an operation it is told by wider and narrower ones that other models ran; alone nothing tells."""

    def member(width: float) -> TracedOperation:
        traffic = {"request_bytes": f"{width}*num_tokens"}
        return operation(f"{int(width):032x}", f"w{int(width)}", family="f" * 32, family_numbers=(width,), **traffic)

    def took(width: float, tokens: tuple[int, ...]) -> dict[JsonObject, float]:
        return {JsonObject({"d0": t}): _humped_ns(width, t) for t in tokens}

    own, known = member(64.0), took(64.0, (1, 8, 64, 256))
    records = {own.signature: [Record(own.signature, "0" * 32, p, np.array([round(ns)] * 3)) for p, ns in known.items()]}
    others = [Known(member(width), took(width, TOKENS)) for width in (16.0, 32.0, 128.0, 256.0)]
    errors = {}
    for told_by in ([], others):
        filled = fill([own], records, measurement_batches(LIMITS), told_by)
        assert list(filled) == [own.signature]
        found = filled[own.signature]
        told = zip(found.points[found.num_measured :], found.whole.latency_ns[found.num_measured :], strict=True)
        between = [abs(ns / _humped_ns(64.0, p["d0"]) - 1) for p, ns in told if 80 <= p["d0"] < 200]
        errors[len(told_by)] = np.median(between)
    assert errors[4] < 0.1 < errors[0], errors
