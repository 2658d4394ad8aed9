"""The latency regressor of a family: one CatBoost model for an operation over all its configurations on one device.

It learns the logarithm of the ratio to the device's roofline (Williams et al., CACM 2009) from features of configuration and
request alike, so that it predicts configurations that nobody measured. Its error is that over held-out *configurations*: points
of a known one say nothing about the next. CatBoost: Prokhorenkova et al., NeurIPS 2018.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.errors import InvalidInputError
from dooly.predict._cbm import read_cbm
from dooly.predict._sources import ESTIMATE_ERROR
from dooly.predict._trees import ObliviousTrees, cbm_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

_FOLDS = 4
_TREES: dict[str, Any] = {
    "loss_function": "RMSE",
    "iterations": 1000,
    "depth": 6,
    "learning_rate": 0.08,
    "l2_leaf_reg": 3.0,
    "random_seed": 0,
    "verbose": False,
    "allow_writing_files": False,
    "boosting_type": "Plain",
    "bootstrap_type": "No",
    "random_strength": 0,
    "border_count": 254,
}


_FACTS = {"relative_error": float, "relative_error_p90": float, "num_configurations": int, "num_points": int}
"""What is told of a fit beside its trees."""


@dataclass(frozen=True, slots=True)
class FamilyRegressor:
    """Predicts the latency of a family's operations from their roofline and features."""

    cbm: bytes = field(repr=False)
    """CatBoost's model of the logarithm of the ratio to the roofline, in CatBoost's own format, the facts below among its
    metadata."""
    trees: ObliviousTrees = field(repr=False)
    """Its trees."""
    relative_error: float
    """Median relative error on configurations held out of the fit."""
    relative_error_p90: float
    """Its 90th percentile."""
    num_configurations: int
    """Configurations that were measured."""
    num_points: int
    """Measured points behind the fit."""

    @classmethod
    def of_cbm(cls, cbm: bytes) -> FamilyRegressor:
        """Return the regressor in CatBoost's own format.

        Raises:
            ValueError: It holds none.
        """
        found = read_cbm(cbm)
        try:
            facts: list[Any] = [of(found.metadata[name]) for name, of in _FACTS.items()]
        except KeyError as error:
            raise ValueError(f"its metadata lacks {error}") from error
        return cls(cbm, ObliviousTrees.of_cbm(found), *facts)

    def predict_ns(self, roofline_ns: Floats, features: Floats) -> Floats:
        """Return latencies in nanoseconds, shape (num_points,).

        Args:
            roofline_ns: The least time that the device could take, shape (num_points,).
            features: The family's features, shape (num_points, num_features).
        """
        return np.asarray(roofline_ns * np.exp(self.trees.predict(features)))

    def save(self, path: Path) -> None:
        """Write the regressor in CatBoost's own format, compressed."""
        path.write_bytes(lzma.compress(self.cbm))

    @classmethod
    def load(cls, path: Path) -> FamilyRegressor:
        """Return the regressor that `save` wrote.

        Raises:
            InvalidInputError: The file holds none.
        """
        try:
            return cls.of_cbm(lzma.decompress(path.read_bytes()))
        except (ValueError, lzma.LZMAError) as error:
            raise InvalidInputError(f"{path}: holds no family regressor ({error}); build it again") from error


def fit_family(
    roofline_ns: Floats, features: Floats, latency_ns: Floats, configurations: Ints, num_judges: int = _FOLDS
) -> FamilyRegressor:
    """Fit a family's regressor, and judge it by configurations held out; one alone is judged by none, and taken for an estimate.

    Args:
        roofline_ns: The least time that the device could take at each point, shape (num_points,).
        features: Features of each point, shape (num_points, num_features).
        latency_ns: Measured latencies, shape (num_points,).
        configurations: Number of the configuration that each point belongs to, shape (num_points,).
        num_judges: How many quarters of the configurations are held out, one after the other; each takes a fit of its own.
    """
    target = np.log(latency_ns / roofline_ns)
    known = np.unique(configurations)
    folds = np.random.default_rng(0).permutation(len(known)) % _FOLDS
    fold_of = folds[np.searchsorted(known, configurations)]
    errors = [
        held_out_errors(roofline_ns, features, latency_ns, fold_of != fold, fold_of == fold)
        for fold in np.unique(folds)[:num_judges]
        if len(known) > 1
    ]
    median, p90 = np.quantile(np.concatenate(errors or [np.array([ESTIMATE_ERROR])]), [0.5, 0.9])
    return _described(_fitted(features, target), float(median), float(p90), len(known), len(target))


def _described(model: Any, *facts: float) -> FamilyRegressor:  # noqa: ANN401 - a CatBoostRegressor
    """Return a fitted model as a regressor, with its facts in the order of `_FACTS`.

    What tells one fit from another of the same data, as its time, is left out: two fits are the same, byte for byte.
    """
    metadata = model.get_metadata()
    for name in list(metadata):
        del metadata[name]
    for name, fact in zip(_FACTS, facts, strict=True):
        metadata[name] = str(fact)
    return FamilyRegressor.of_cbm(cbm_of(model))


def held_out_errors(
    roofline_ns: Floats,
    features: Floats,
    latency_ns: Floats,
    trained: npt.NDArray[np.bool_],
    held: npt.NDArray[np.bool_],
) -> Floats:
    """Return the relative errors at the points `held` of a fit to the points `trained`, shape (num_held,)."""
    target = np.log(latency_ns / roofline_ns)
    model = _fitted(features[trained], target[trained])
    return np.asarray(np.abs(np.exp(model.predict(features[held]) - target[held]) - 1))


def _fitted(features: Floats, target: Floats) -> Any:  # noqa: ANN401 - a CatBoostRegressor
    from catboost import CatBoostRegressor

    model = CatBoostRegressor(**_TREES)
    model.fit(features, target)
    return model
