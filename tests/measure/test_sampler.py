"""The sampler of many operations: what families tell each other, what a forecast leaves alone, what cannot be measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dbstore import JsonObject
from dooly.catalog import LAYER, PASSES, STEP, Known, key_of, plain_linear
from dooly.measure._adaptive_plan import AdaptivePlan
from dooly.measure._passes import Passes
from dooly.measure._sampler import Sampler, sampler_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dooly.catalog import Key
    from dooly.tracing import TracedOperation

TOKENS = tuple(int(t) for t in np.unique(np.geomspace(1, 8192, 50).astype(int)))


def _product(n: int, k: int) -> TracedOperation:
    return replace(plain_linear(n, k, "bfloat16"), family="f" * 32, family_numbers=(float(n), float(k)))


def _latencies(n: int, k: int) -> dict[JsonObject, float]:
    """Return a roofline with a soft bend, tiles of 128 rows, and a level that widths shift smoothly."""
    tiles = {t: np.ceil(t / 128) * 128 for t in TOKENS}
    work = {t: 2 * tiles[t] * n * k / 8e5 + 2 * n * k / 4e3 for t in TOKENS}
    return {JsonObject({"d0": t}): float(3000 + work[t] * (1 + 0.1 * np.sin(np.log(n * k)))) for t in TOKENS}


def _passes(
    places: Sequence[Mapping[Key, JsonObject]],
    counts: Mapping[Key, Counter[JsonObject]],
    latencies_ns: Mapping[Key, Mapping[JsonObject, float]],
    calm_ns: Mapping[Key, Mapping[JsonObject, Sequence[float]]] | None = None,
) -> Passes:
    return Passes({key: {place[key] for place in places} for key in counts}, counts, latencies_ns, calm_ns or {}, 0.03)


def _num_drawn(new: tuple[int, int], others: list[Known]) -> tuple[int, Sampler[Key]]:
    """Return how many points a sweep takes, its two ends included, and the sampler."""
    operation, latency_ns = _product(*new), _latencies(*new)
    key, points = key_of(operation), list(latency_ns)
    ends = {point: latency_ns[point] for point in (points[0], points[-1])}
    sampler = sampler_of({key: operation}, (), [{key: point} for point in points], {key: ends}, others, 0.03)
    count = len(ends)
    while (found := sampler.next(lambda _place: 1.0)) is not None:
        sampler.told(key, points[found[0]], latency_ns[points[found[0]]])
        count += 1
    return count, sampler


def test_a_product_of_new_widths_needs_fewer_points_where_others_are_known() -> None:
    """Of products of other widths nine points each; the new one then takes at most half of what it takes alone."""
    rng = np.random.default_rng(0)
    others = []
    for n in (1024, 4096, 16384):
        for k in (1024, 4096, 8192):
            found = _latencies(n, k)
            chosen = rng.choice(len(found), 9, replace=False)
            others.append(Known(_product(n, k), {list(found)[i]: list(found.values())[i] for i in chosen}))
    alone, _ = _num_drawn((6144, 2048), [])
    by_family, sampler = _num_drawn((6144, 2048), others)
    assert by_family <= max(3, alone / 2)
    assert sampler.unfinished() == ()
    assert sampler.error() < 0.06


def test_the_error_of_a_step_counts_operations_by_their_time() -> None:
    """A large product that is known well and a small one that is not: a step is as far off as the one that takes its time."""
    products = {key_of(op): op for op in (_product(8192, 8192), replace(_product(64, 64), family="other", signature="small"))}
    large, small = products
    places = [{key: JsonObject({"d0": t}) for key in products} for t in TOKENS]
    sampler = sampler_of(products, (), places, {large: _latencies(8192, 8192)}, (), 0.03)
    for t in TOKENS[::8]:
        sampler.told(small, JsonObject({"d0": t}), 3000.0 * (3 if t % 2 else 1))
    errors = {key: error.median for key, error in sampler.errors().items()}
    assert errors[large] == 0.0  # all of its points are known
    assert errors[small] > 0.05
    assert 0 < sampler.error() < errors[small] / 20
    assert errors[small] / 2 < sampler.error({large: 1, small: 10**6}) < errors[small]


def test_a_whole_layer_counts_by_its_operations() -> None:
    """A layer's time is that of what it runs: however little is known of the layer as a whole, a step is as unsure as these."""
    product = _product(1024, 1024)
    layer = replace(product, signature="layer", name=LAYER, stage="engine", family="")
    operations = {key_of(op): op for op in (product, layer)}
    points, law = [JsonObject({"d0": t}) for t in TOKENS], _latencies(1024, 1024)
    ends = {key: {point: law[point] for point in (points[0], points[-1])} for key in operations}
    counts = {key: Counter(dict.fromkeys(found, PASSES)) for key, found in ends.items()}
    places, sizes = [dict.fromkeys(operations, point) for point in points], np.array(TOKENS, dtype=np.float64)[:, None]
    passes = _passes(places, counts, ends)
    plan = AdaptivePlan(operations, tuple(operations.values()), places, sizes, (), passes, (), 0.03, SimpleNamespace)
    errors = {key: error.median for key, error in plan.sampler.errors().items()}
    assert errors[key_of(layer)] != pytest.approx(errors[key_of(product)])
    assert plan.error == pytest.approx(errors[key_of(product)])


def _around(name: str, parts: float, own_ns: float, path: str = "model.layers.0") -> tuple[int, float]:
    """Return how many points the sweep takes of what an engine does around a known product, and the error of a step.

    Args:
        name: `LAYER` or `STEP`.
        parts: How often its time holds the product's, of which each takes 11.4 us at least.
        own_ns: What it takes beside, give or take three tenths.
        path: The layer that runs the product.
    """
    product = replace(_product(4096, 4096), placements=((f"{path}.up", 2), ("head", 1)), count=3)
    whole = replace(product, signature="whole", name=name, module="model.layers.0", stage="engine", family="", count=1)
    law = {JsonObject({"d0": t}): 3000 + max(42.0 * t, 8400.0) for t in TOKENS}
    points, rng = list(law), np.random.default_rng(1)
    took = {point: parts * law[point] + own_ns * rng.uniform(0.7, 1.3) for point in points}
    operations = {key_of(op): op for op in (product, whole)}
    places = [dict.fromkeys(operations, point) for point in points]
    sampler, count = sampler_of(operations, tuple(operations.values()), places, {key_of(product): law}, (), 0.03), 0
    while (found := sampler.next(lambda _place: 1.0)) is not None:
        assert found[1] == (key_of(whole),)
        sampler.told(key_of(whole), points[found[0]], took[points[found[0]]])
        count += 1
    return count, sampler.error({key_of(product): 3, key_of(whole): name == STEP})


def test_a_layer_is_told_by_its_operations_and_a_few_points() -> None:
    """A layer takes a tenth more than its two products: fewer points tell that than a layer of which no operation is known."""
    by_operations, _ = _around(LAYER, parts=2.2, own_ns=0.0)
    by_itself, _ = _around(LAYER, parts=2.2, own_ns=0.0, path="model.layers.1")
    assert by_operations < by_itself


def test_what_a_step_takes_beside_its_operations_is_judged_with_them() -> None:
    """Three tenths of what is a fiftieth of a step are nothing; of what is as long as the operations, they are much."""
    few, little = _around(STEP, parts=0.0, own_ns=700.0)
    many, much = _around(STEP, parts=0.0, own_ns=700_000.0)
    assert few <= 8 < many
    assert little < 0.03 < much


@pytest.mark.parametrize(("seconds", "where"), [(1.5, [2]), (2.5, [0, 1])])
def test_further_passes_run_the_places_that_measure_most_a_second(seconds: float, where: list[int]) -> None:
    """Levels moved; of two operations two places have a point each, a third has both: it, unless it costs more than both."""
    left, right = _product(1024, 1024), replace(_product(64, 64), family="other", signature="other")
    x, y, z = (JsonObject({"d0": t}) for t in (1, 2, 3))
    places = [{key_of(left): x, key_of(right): z}, {key_of(left): z, key_of(right): y}, {key_of(left): x, key_of(right): y}]
    counts, ends = (
        {key_of(left): Counter({x: 2}), key_of(right): Counter({y: 2})},
        {key_of(left): {x: 1.5e4}, key_of(right): {y: 1.5e4}},
    )
    operations, sizes = {key_of(op): op for op in (left, right)}, np.array([[1.0], [1.0], [seconds]])
    made = []

    def make(number: int, place: int, keys: Sequence[Key]) -> SimpleNamespace:
        made.append((number, place, len(keys)))
        return SimpleNamespace(number=number, place=place, missing=keys)

    passes = _passes(places, counts, ends, {key: {point: [1e4, 2e4] for point in found} for key, found in ends.items()})
    plan = AdaptivePlan(operations, tuple(operations.values()), places, sizes, (), passes, (), 0.03, make)
    for place in range(3):
        plan.places.costs.told(place, float(sizes[place, 0]))
    _ = plan.sampler  # by its closed forms levels are told
    plan._other_passes()
    assert sorted(made) == [(2, place, 2 // len(where)) for place in where]


def test_ends_tell_nothing_of_what_lies_between() -> None:
    """Four products take what their closed forms say at the same three ends, and half as much again between."""
    operations = {key_of(op): op for op in (_product(n, 1024) for n in (512, 1024, 2048, 4096))}
    points = [JsonObject({"d0": t}) for t in TOKENS]
    sweeps = sampler_of(operations, (), [dict.fromkeys(operations, point) for point in points], {}, (), 0.03).sweeps
    closed_ns = {key: dict(zip(points, sweep.roofline_ns.tolist(), strict=True)) for key, sweep in sweeps.items()}
    ends = {key: {point: took[point] for point in (points[0], points[-2], points[-1])} for key, took in closed_ns.items()}

    def asked(fitted_from: int) -> set[int]:
        places = [dict.fromkeys(operations, point) for point in points]
        sampler, found = Sampler(sweeps, places, ends, (), 0.03, fitted_from=fitted_from), set()
        while (wanted := sampler.next(lambda _place: 1.0)) is not None:
            place, keys = wanted
            found.add(place)
            for key in keys:
                bump = 1 + 0.5 * float(np.exp(-((np.log(TOKENS[place]) - 4.5) ** 2)))
                sampler.told(key, points[place], closed_ns[key][points[place]] * bump)
        return found

    assert asked(fitted_from=1) == set()
    assert any(20 < TOKENS[place] < 400 for place in asked(fitted_from=6))


def test_imagining_changes_nothing() -> None:
    """A forecast leaves what is known as it was, and asks for no more than all points."""
    count, sampler = _num_drawn((6144, 2048), [])
    assert not sampler.imagined()
    fresh = Sampler(sampler.sweeps, sampler.places, {}, (), 0.03)
    before = fresh.error()
    assert 0 < fresh.imagined().total() <= len(TOKENS)
    (key,) = sampler.sweeps
    everywhere = [(place, (key,)) for place in range(len(TOKENS))]
    assert fresh.imagined(everywhere).total() == len(TOKENS)
    assert fresh.error() == pytest.approx(before)
    assert count >= 3


def test_a_point_that_cannot_be_measured_is_asked_for_no_more() -> None:
    """A sampler that is told of none but failures asks for every point once, and ends."""
    operation = _product(512, 512)
    key, points = key_of(operation), [JsonObject({"d0": t}) for t in TOKENS[:6]]
    sampler = sampler_of({key: operation}, (), [{key: point} for point in points], {}, (), 0.03)
    asked = []
    while (found := sampler.next(lambda _place: 1.0)) is not None:
        asked.append(found[0])
        sampler.told(key, points[found[0]], None)
    assert sorted(asked) == list(range(6))
    assert sampler.error() == 0.0


def test_a_corner_in_doubt_is_asked_for_once_the_sweep_may_end() -> None:
    """Far beyond what anybody measured one point in thirty is in doubt: too few to keep a sweep going, and measured at last."""
    tokens = [*range(1, 31), 1 << 20]
    points = [JsonObject({"d0": t}) for t in tokens]
    law = {p: 3e5 * t * float(np.sqrt(1.1 + np.sin(2 * np.log(t)))) for p, t in zip(points, tokens, strict=True)}
    known = [Known(_product(n, 4096), {p: law[p] * n / 1024 for p in points[:-1]}) for n in (512, 2048)]
    operation = _product(1024, 4096)
    key = key_of(operation)
    own = {points[row]: law[points[row]] for row in (0, 2, 6)}
    counts, places = {key: Counter(dict.fromkeys(own, PASSES))}, [{key: point} for point in points]
    sizes = np.array(tokens, dtype=np.float64)[:, None]
    made: list[tuple[int, int]] = []

    def make(number: int, place: int, keys: Sequence[Key]) -> SimpleNamespace:
        made.append((number, place))
        return SimpleNamespace(number=number, place=place, missing=keys)

    passes = _passes(places, counts, {key: own})
    plan = AdaptivePlan({key: operation}, (operation,), places, sizes, (0, 30), passes, known, 0.03, make)
    assert plan.sampler.next(plan.places.costs.at) is None
    assert plan.sampler.is_doubtful(key, points[30])
    assert not plan.sampler.is_doubtful(key, points[4])
    plan.next()
    assert made == [(0, 30)]
    plan.sampler.told(key, points[30], law[points[30]])
    assert not plan.sampler.is_doubtful(key, points[30])
