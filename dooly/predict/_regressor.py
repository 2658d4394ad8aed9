"""The latency regressor of one operation: a physical base, and CatBoost for what the base misses.

The base is a non-negative sum of closed-form terms (a fixed cost, FLOPs, bytes: a roofline whose ceilings are fitted), found by
non-negative least squares on relative errors (Lawson and Hanson, 1974). CatBoost learns the logarithm of the ratio to it
(Prokhorenkova et al., NeurIPS 2018), which is near 0 everywhere; so beyond the measured range the physics extrapolates and the
trees do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.predict._trees import ObliviousTrees

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dbstore import JSON

    Floats = npt.NDArray[np.float64]

_FOLDS = 5
_MIN_POINTS = 8
_MIN_JUDGED = 20
"""Points below which the share that intervals cover is no estimate of anything."""
_EXACT = 1e-6
_RESOLUTION_NS = 500.0
"""Latencies below this count by their absolute error: CUDA events resolve half a microsecond, so 0 and 1 may be the same."""
_UNJUDGED = 1.0
"""Relative error of a fit that no other point judges: as much as the latency itself."""
_TREES: dict[str, Any] = {
    "loss_function": "MAE",
    "iterations": 150,
    "depth": 3,
    "learning_rate": 0.08,
    "l2_leaf_reg": 3.0,
    "min_data_in_leaf": 1,
    "random_seed": 0,
    "thread_count": 1,
    "verbose": False,
    "allow_writing_files": False,
    "boosting_type": "Plain",
    "bootstrap_type": "No",
    "random_strength": 0,
}


@dataclass(frozen=True, slots=True)
class Regressor:
    """Predicts one operation's latency from the terms of its base and the features of its trees."""

    weights: Floats
    """Nanoseconds a unit of each base term, shape (num_terms,), none negative."""
    trees: ObliviousTrees | None
    """CatBoost's model of the logarithm of the ratio to the base; None where the points are too few."""
    relative_error: float
    """Median relative error on held-out points; 1 where none can be held out."""
    relative_error_p90: float
    """Relative error that nine of ten measurements of new points keep within, each in a pass of its own: the half width of a 90 %
    interval, of which a machine's drift from pass to pass is part."""
    coverage: float | None
    """Share of held-out measurements within such intervals made of the other points' errors; None of too few points."""
    num_points: int
    """Measured points behind the fit."""

    def to_json(self) -> dict[str, JSON]:
        """Return the regressor as JSON."""
        trees = None if self.trees is None else self.trees.to_json()
        return {"weights": self.weights.tolist(), "trees": trees} | {
            "relative_error": self.relative_error,
            "relative_error_p90": self.relative_error_p90,
            "coverage": self.coverage,
            "num_points": self.num_points,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, JSON]) -> Regressor:
        """Return the regressor that `to_json` told of."""
        trees = None if document["trees"] is None else ObliviousTrees.from_json(document["trees"])
        weights = np.array(document["weights"], dtype=np.float64)
        judged = (document[name] for name in ("relative_error", "relative_error_p90", "coverage", "num_points"))
        return cls(weights, trees, *judged)

    def predict_ns(self, terms: Floats, features: Floats) -> Floats:
        """Return latencies in nanoseconds, shape (num_batches,).

        Args:
            terms: Base terms, shape (num_batches, num_terms).
            features: Tree features, shape (num_batches, num_features).
        """
        base: Floats = terms @ self.weights
        if self.trees is None:
            return base
        predicted: Floats = base * np.exp(self.trees.predict(np.log1p(features)))
        return predicted


def fit_regressor(terms: Floats, features: Floats, latency_ns: Floats, passes_ns: Floats | None = None) -> Regressor:
    """Fit an operation's regressor to its measured medians, and judge it by cross-validation.

    Args:
        terms: Base terms at each point, shape (num_points, num_terms).
        features: Tree features at each point, shape (num_points, num_features).
        latency_ns: Median latency at each point, shape (num_points,).
        passes_ns: What each pass found at each point, shape (num_points, num_passes), NaN where it has none; None of single ones.
    """
    weights, trees = _fit(terms, features, latency_ns)
    return Regressor(weights, trees, *_judged(terms, features, latency_ns, passes_ns), len(latency_ns))


def fit_unjudged(terms: Floats, features: Floats, latency_ns: Floats, importance: Floats) -> Regressor:
    """Fit a regressor that says nothing of its error, to points that count by their importance, shape (num_points,)."""
    return Regressor(*_fit(terms, features, latency_ns, importance), _UNJUDGED, _UNJUDGED, None, len(latency_ns))


def _fit(
    terms: Floats, features: Floats, latency_ns: Floats, importance: Floats | None = None
) -> tuple[Floats, ObliviousTrees | None]:
    """Fit base and trees; importance is one over a point's typical error, by which squares and absolute values are divided."""
    from scipy.optimize import nnls

    scale = np.maximum(np.abs(terms).max(axis=0), 1e-300)
    resolved_ns = np.maximum(latency_ns, _RESOLUTION_NS)
    row = (1 if importance is None else importance) / resolved_ns
    solution, _ = nnls(terms / scale * row[:, None], latency_ns * row)
    weights = solution / scale
    base = terms @ weights
    if len(latency_ns) < _MIN_POINTS or np.any(base <= 0):
        return weights, None
    log_ratio = np.log(resolved_ns / np.maximum(base, _RESOLUTION_NS))
    if np.ptp(log_ratio) < _EXACT:  # the base says it all, and CatBoost refuses targets that are equal
        return weights, None
    from catboost import CatBoostRegressor

    model = CatBoostRegressor(**_TREES)
    model.fit(np.log1p(features), log_ratio, sample_weight=importance)
    return weights, ObliviousTrees.of(model)


def _judged(terms: Floats, features: Floats, latency_ns: Floats, passes_ns: Floats | None) -> tuple[float, float, float | None]:
    """Return the median of held-out points' relative errors, the half width of a 90 % interval, and the share that such cover.

    A single point judges nothing but itself, which is enough where there is no other: an operation of no request dimension.
    """
    if len(latency_ns) == 1:
        only = _UNJUDGED if features.shape[1] else 0.0
        return only, only, None
    predicted_ns, fold_of = _held_out(terms, features, latency_ns)
    return judge(predicted_ns, latency_ns, fold_of, passes_ns)


def judge(
    predicted_ns: Floats, latency_ns: Floats, fold_of: npt.NDArray[np.int64], passes_ns: Floats | None = None
) -> tuple[float, float, float | None]:
    """Return the median of held-out errors, the half width of a 90 % interval, and the share that such cover; None of few.

    Whoever measures a point again does so in another pass, so an interval is of what single passes found, each judged by what
    the other points say as the other passes found them. The median is of the error of what all passes say together.

    Args:
        predicted_ns: What was fitted without a point's fold says of it, shape (num_points,).
        latency_ns: What was measured, shape (num_points,).
        fold_of: The fold of each point, shape (num_points,).
        passes_ns: What each pass found, shape (num_points, num_passes), NaN where it has none; None of single ones.
    """
    found_ns = latency_ns[:, None] if passes_ns is None else passes_ns
    told_ns, is_found = predicted_ns[:, None] * _without_each(found_ns), ~np.isnan(found_ns)
    errors = relative_errors(told_ns[is_found], found_ns[is_found])
    fold_of_pass = np.repeat(fold_of, is_found.sum(axis=1))
    within = [
        errors[fold_of_pass == fold] <= conformal_quantile(errors[fold_of_pass != fold])
        for fold in np.unique(fold_of)
        if len(latency_ns) >= _MIN_JUDGED
    ]
    coverage = float(np.concatenate(within).mean()) if within else None
    return float(np.median(relative_errors(predicted_ns, latency_ns))), conformal_quantile(errors), coverage


def _without_each(passes_ns: Floats) -> Floats:
    """Return how what the other passes say of a point lies to what all say, shape (num_points, num_passes).

    It is 1 of a single pass, and of a pass of which fewer points than a fit takes have another beside it.

    A machine is at one level in each pass and at another in the next, which a pass that is judged must not have told of itself.
    By the medians over points, since a point's own passes are what is judged.
    """
    logs = np.log(np.maximum(passes_ns, _RESOLUTION_NS))
    counts = (~np.isnan(passes_ns)).sum(axis=1)
    several = counts > 1
    apart = logs[several] - np.nanmean(logs[several], axis=1)[:, None]
    others = np.zeros(passes_ns.shape)
    for column in range(passes_ns.shape[1]):
        level = apart[~np.isnan(apart[:, column]), column]
        if len(level) >= _MIN_POINTS:
            others[several, column] = -np.median(level) / (counts[several] - 1)
    return np.exp(others)


def conformal_quantile(errors: Floats, share: float = 0.9) -> float:
    """Return what a new point's error keeps below with a probability of `share`, given exchangeable ones, shape (num_points,).

    It is the smallest error that share * (num_points + 1) of them keep below, and of few points the largest (split conformal
    prediction: Papadopoulos et al., ECML 2002; over folds: Vovk, Annals of Mathematics and Artificial Intelligence 2015).
    """
    rank = min(len(errors), ceil(share * (len(errors) + 1) - _EXACT))
    return float(np.sort(errors)[rank - 1])


def _held_out(terms: Floats, features: Floats, latency_ns: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return what a fit without a point and its fold says of it, and its fold; of few points each is one."""
    count = len(latency_ns)
    folds = _FOLDS if count >= 2 * _FOLDS else count
    order = np.random.default_rng(0).permutation(count)
    predicted_ns, fold_of = np.empty(count), np.empty(count, dtype=np.int64)
    for fold in range(folds):
        held = order[fold::folds]
        rest = np.setdiff1d(order, held)
        weights, trees = _fit(terms[rest], features[rest], latency_ns[rest])
        predicted_ns[held] = Regressor(weights, trees, 0.0, 0.0, None, len(rest)).predict_ns(terms[held], features[held])
        fold_of[held] = fold
    return predicted_ns, fold_of


def relative_errors(predicted_ns: Floats, latency_ns: Floats) -> Floats:
    """Return relative errors of predictions; what is too short to time counts by its absolute error. Shape (num_points,) all."""
    return np.asarray(np.abs(predicted_ns - latency_ns) / np.maximum(latency_ns, _RESOLUTION_NS))
