from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.predict._regressor import conformal_quantile, fit_regressor, judge

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MEASURED = np.unique(np.geomspace(1, 2048, 36).round())
HELD_OUT = np.array([5.0, 23.0, 77.0, 181.0, 450.0, 900.0, 1500.0])
FLOPS = 2.0 * 1024 * 1024
"""A token's floating-point operations in a 1024 x 1024 matrix product."""


def _terms(num_tokens: Floats) -> Floats:
    """Return a constant, FLOPs and bytes of the matrix product."""
    return np.column_stack([np.ones(len(num_tokens)), FLOPS * num_tokens, 2 * 1024 * 1024 + 4096 * num_tokens])


def _roofline_ns(num_tokens: Floats) -> Floats:
    """Return a launch of 3 us, then the longer of reading at 20 B/ns and computing at 400 FLOP/ns."""
    _, flops, traffic = _terms(num_tokens).T
    latency_ns: Floats = 3000 + np.maximum(traffic / 20, flops / 400)
    return latency_ns


def test_a_roofline_is_recovered_between_the_points() -> None:
    """Held-out latencies of a roofline are predicted within a few percent, right at its sharp bend (21 tokens) within 15."""
    regressor = fit_regressor(_terms(MEASURED), MEASURED[:, None], _roofline_ns(MEASURED))
    predicted = regressor.predict_ns(_terms(HELD_OUT), HELD_OUT[:, None])
    errors = np.abs(predicted / _roofline_ns(HELD_OUT) - 1)
    assert errors[HELD_OUT != 23].max() < 0.03
    assert errors.max() < 0.15
    assert np.median(errors) < 0.02
    assert regressor.relative_error < 0.05


def test_a_sum_of_terms_is_exact_at_any_distance() -> None:
    """Where latency is a sum of its terms, the base alone is right, also at a hundred times the range."""
    weights = np.array([5000.0, 1e-3, 2e-2])
    regressor = fit_regressor(_terms(MEASURED), MEASURED[:, None], _terms(MEASURED) @ weights)
    far = np.array([204_800.0])
    np.testing.assert_allclose(regressor.predict_ns(_terms(far), far[:, None]), _terms(far) @ weights, rtol=0.01)


def test_beyond_the_range_latency_is_finite_and_grows() -> None:
    """Extrapolation follows the physical base: no flat ends, no jumps down."""
    regressor = fit_regressor(_terms(MEASURED), MEASURED[:, None], _roofline_ns(MEASURED))
    beyond = np.geomspace(2048, 2048 * 1000, 50)
    predicted = regressor.predict_ns(_terms(beyond), beyond[:, None])
    assert np.isfinite(predicted).all()
    assert (np.diff(predicted) > 0).all()
    assert predicted[-1] > 500 * predicted[0]


def test_two_fits_are_one() -> None:
    """The same points give the same predictions to the last bit."""
    noisy = _roofline_ns(MEASURED) * np.random.default_rng(1).normal(1, 0.05, len(MEASURED))
    first, second = (fit_regressor(_terms(MEASURED), MEASURED[:, None], noisy) for _ in range(2))
    np.testing.assert_array_equal(
        first.predict_ns(_terms(HELD_OUT), HELD_OUT[:, None]), second.predict_ns(_terms(HELD_OUT), HELD_OUT[:, None])
    )
    assert first.relative_error == second.relative_error > 0


def test_no_term_costs_less_than_nothing() -> None:
    """Weights stay at 0 or above, where least squares alone would go below."""
    regressor = fit_regressor(_terms(MEASURED), MEASURED[:, None], np.full(len(MEASURED), 1e4) / np.sqrt(MEASURED))
    assert (regressor.weights >= 0).all()


def test_few_points_are_fitted_by_the_base_alone() -> None:
    """Below eight points no trees are trained, and the error is that of the fit."""
    few = MEASURED[:5]
    regressor = fit_regressor(_terms(few), few[:, None], _roofline_ns(few))
    assert regressor.trees is None
    assert regressor.num_points == 5
    np.testing.assert_allclose(regressor.predict_ns(_terms(few), few[:, None]), _roofline_ns(few), rtol=0.01)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """A batch has the same latency alone and among others."""
    regressor = fit_regressor(_terms(MEASURED), MEASURED[:, None], _roofline_ns(MEASURED))
    together = regressor.predict_ns(_terms(HELD_OUT), HELD_OUT[:, None])
    alone = [regressor.predict_ns(_terms(HELD_OUT[[i]]), HELD_OUT[[i], None])[0] for i in range(len(HELD_OUT))]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_one_point_says_nothing_of_others() -> None:
    """A fit that no other point judges claims no accuracy; two points judge each other."""
    one, two = (fit_regressor(_terms(n), n[:, None], _roofline_ns(n)) for n in (MEASURED[9:10], MEASURED[[9, 30]]))
    assert one.relative_error == 1.0
    assert two.relative_error > 1.0


def test_one_point_is_all_there_is_without_request_dimensions() -> None:
    """An operation that nothing in a request changes is known from its only point."""
    regressor = fit_regressor(np.ones((1, 1)), np.empty((1, 0)), np.array([5000.0]))
    assert regressor.relative_error == 0.0
    assert regressor.predict_ns(np.ones((1, 1)), np.empty((1, 0)))[0] == pytest.approx(5000.0)


@pytest.mark.parametrize("lost_ns", [0.0, 1.0])
def test_points_below_the_resolution_do_not_upset_the_others(lost_ns: float) -> None:
    """A point too short to be timed is one of small latency: the longer ones are predicted as without it."""
    for measured in (MEASURED, MEASURED[::6]):
        latency_ns = 20.0 * measured
        latency_ns[0] = lost_ns
        regressor = fit_regressor(_terms(measured), measured[:, None], latency_ns)
        predicted = regressor.predict_ns(_terms(HELD_OUT), HELD_OUT[:, None])
        np.testing.assert_allclose(predicted[2:], 20.0 * HELD_OUT[2:], rtol=0.05)
        assert regressor.relative_error < 0.05


def test_an_operation_that_is_never_resolved_takes_no_time() -> None:
    """Where every median is 0 the prediction is 0, and finite."""
    regressor = fit_regressor(_terms(MEASURED), MEASURED[:, None], np.zeros(len(MEASURED)))
    assert regressor.predict_ns(_terms(HELD_OUT), HELD_OUT[:, None]).tolist() == [0.0] * len(HELD_OUT)
    assert regressor.relative_error == 0.0


def test_nine_of_ten_new_points_lie_in_the_interval() -> None:
    """Of points drawn as the measured ones are, about nine of ten are off by no more than the interval says, and it knows so."""
    rng = np.random.default_rng(3)
    sizes = rng.uniform(1, 2048, 600).round()
    latency_ns = _roofline_ns(sizes) * np.exp(0.05 * rng.standard_normal(600))
    known, new = slice(0, 100), slice(100, 600)
    regressor = fit_regressor(_terms(sizes[known]), sizes[known, None], latency_ns[known])
    predicted = regressor.predict_ns(_terms(sizes[new]), sizes[new, None])
    errors = np.abs(predicted / latency_ns[new] - 1)
    assert 0.85 <= np.mean(errors <= regressor.relative_error_p90) <= 0.95
    assert regressor.coverage is not None
    assert 0.85 <= regressor.coverage <= 0.95
    assert regressor.relative_error < regressor.relative_error_p90


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (9, 9), (19, 18), (99, 90), (999, 900)])
def test_a_conformal_quantile_is_one_of_the_errors(count: int, rank: int) -> None:
    """The smallest that enough of them keep within, a new one counted among them; of few the largest."""
    errors = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert conformal_quantile(errors) == rank


def test_an_interval_is_as_wide_as_passes_differ() -> None:
    """Nine of ten measurements in a pass of their own lie in it, though the passes' mean is known far better than any of them."""
    rng = np.random.default_rng(5)
    sizes = rng.uniform(1, 2048, 100).round()
    passes_ns = _roofline_ns(sizes)[:, None] * np.exp(0.08 * rng.standard_normal((100, 3)))
    latency_ns = passes_ns.mean(axis=1)
    known = fit_regressor(_terms(sizes), sizes[:, None], latency_ns, passes_ns)
    again_ns = _roofline_ns(sizes) * np.exp(0.08 * rng.standard_normal(100))
    errors = np.abs(known.predict_ns(_terms(sizes), sizes[:, None]) / again_ns - 1)
    assert 0.85 <= np.mean(errors <= known.relative_error_p90) <= 0.96
    assert known.coverage is not None
    assert 0.85 <= known.coverage <= 0.95
    by_means = fit_regressor(_terms(sizes), sizes[:, None], latency_ns)
    assert np.mean(errors <= by_means.relative_error_p90) < 0.85
    assert known.relative_error == by_means.relative_error


def test_points_of_several_passes_may_differ_in_number() -> None:
    """What is missing counts nowhere, and a level is that of points which have another pass to tell it by."""
    predicted_ns, fold_of = np.full(40, 1e6), np.arange(40) % 5
    passes_ns = np.full((40, 3), np.nan)
    passes_ns[:, 0] = 1.02e6
    passes_ns[:9, 1] = 1.02e6 * np.exp(0.2)
    passes_ns[0, 2] = 9e6  # one point tells no level
    _, p90, coverage = judge(predicted_ns, np.nanmean(passes_ns, axis=1), fold_of, passes_ns)
    # Of 50 errors the 46th: beyond 31 of single passes and nine of the first, which others put a tenth higher; of the second.
    assert p90 == pytest.approx(1 - np.exp(-0.1 - 0.2) / 1.02)
    assert coverage is not None


def test_times_too_short_to_tell_have_no_level() -> None:
    """Half a microsecond and none are the same: a pass that resolved nothing makes no interval wider."""
    predicted_ns, fold_of = np.full(30, 400.0), np.arange(30) % 5
    passes_ns = np.tile([0.0, 500.0, 500.0], (30, 1))
    _, p90, _ = judge(predicted_ns, passes_ns.mean(axis=1), fold_of, passes_ns)
    assert p90 == pytest.approx(0.8)


def test_an_interval_holds_a_pass_of_which_the_others_know_nothing() -> None:
    """Three passes at levels a tenth apart: the two others are 15 % off where each alone is told, and not 10."""
    sizes = np.random.default_rng(5).uniform(1, 2048, 200).round()
    passes_ns = _roofline_ns(sizes)[:, None] * np.exp([-0.1, 0.0, 0.1])
    known = fit_regressor(_terms(sizes), sizes[:, None], passes_ns.mean(axis=1), passes_ns)
    assert 0.14 < known.relative_error_p90 < 0.19
