"""The latency regressor of a family: one CatBoost model for an operation over all its configurations on one device.

It learns the logarithm of the ratio to the device's roofline (Williams et al., CACM 2009) from features of configuration and
request alike, so that it predicts configurations that nobody measured. Its error is that over held-out *configurations*: points
of a known one say nothing about the next. CatBoost: Prokhorenkova et al., NeurIPS 2018.
"""

from __future__ import annotations

import lzma
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.errors import InvalidInputError
from dooly.predict._sources import ESTIMATE_ERROR
from dooly.predict._trees import ObliviousTrees

if TYPE_CHECKING:
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


@dataclass(frozen=True)
class FamilyRegressor:
    """Predicts the latency of a family's operations from their roofline and features."""

    model: Any
    """CatBoost's model of the logarithm of the ratio to the roofline."""
    relative_error: float
    """Median relative error on configurations held out of the fit."""
    relative_error_p90: float
    """Its 90th percentile."""
    num_configurations: int
    """Configurations that were measured."""
    num_points: int
    """Measured points behind the fit."""

    def predict_ns(self, roofline_ns: Floats, features: Floats) -> Floats:
        """Return latencies in nanoseconds, shape (num_points,).

        Args:
            roofline_ns: The least time that the device could take, shape (num_points,).
            features: The family's features, shape (num_points, num_features).
        """
        return np.asarray(roofline_ns * np.exp(self._trees.predict(features)))

    @cached_property
    def _trees(self) -> ObliviousTrees:
        return ObliviousTrees.of(self.model)

    def save(self, path: Path) -> None:
        """Write the regressor in CatBoost's own format, compressed, its errors among the file's metadata.

        What tells one fit from another of the same data, as its time, is left out: files of two fits are the same.
        """
        facts = self.model.get_metadata()
        for name in list(facts):
            del facts[name]
        for name in ("relative_error", "relative_error_p90", "num_configurations", "num_points"):
            facts[name] = str(getattr(self, name))
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "model.cbm"
            self.model.save_model(str(plain))
            path.write_bytes(lzma.compress(plain.read_bytes()))

    @classmethod
    def load(cls, path: Path) -> FamilyRegressor:
        """Return the regressor that `save` wrote.

        Raises:
            InvalidInputError: The file holds none.
        """
        from catboost import CatBoostError, CatBoostRegressor

        model = CatBoostRegressor()
        try:
            model.load_model(blob=lzma.decompress(path.read_bytes()))
            facts = model.get_metadata()
            errors = (float(facts["relative_error"]), float(facts["relative_error_p90"]))
            return cls(model, *errors, int(facts["num_configurations"]), int(facts["num_points"]))
        except (CatBoostError, KeyError, ValueError, lzma.LZMAError) as error:
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
    return FamilyRegressor(_fitted(features, target), float(median), float(p90), len(known), len(target))


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
