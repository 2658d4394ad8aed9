"""CatBoost's trees as arrays, which price the one batch that the simulator asks for in microseconds.

A call into CatBoost takes two tenths of a millisecond, and several where the processor has other work. CatBoost trains oblivious
trees: every node of a level asks the same question, so a row's answers, read as bits, are its leaf's number (Prokhorenkova et
al., NeurIPS 2018).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.predict._cbm import read_cbm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dbstore import JSON
    from dooly.predict._cbm import CbmTrees

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]


def cbm_of(model: Any) -> bytes:  # noqa: ANN401 - a CatBoostRegressor
    """Return a trained CatBoost model in CatBoost's own format, which it writes to files only."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.cbm"
        model.save_model(str(file))
        return file.read_bytes()


@dataclass(frozen=True, slots=True)
class ObliviousTrees:
    """A trained ensemble of oblivious trees of one depth."""

    feature: Ints
    """Feature that each level asks about, shape (num_trees, depth)."""
    border: npt.NDArray[np.float32]
    """Value that the feature must exceed for a one, in CatBoost's single precision, shape (num_trees, depth)."""
    leaf: Floats
    """Value of each leaf, shape (num_trees, 2**depth)."""
    scale: float
    """Factor on the sum of the leaves."""
    bias: float
    """Added to the scaled sum."""

    @classmethod
    def of(cls, model: Any) -> ObliviousTrees:  # noqa: ANN401 - a CatBoostRegressor
        """Return the trees of a trained CatBoost model."""
        return cls.of_cbm(read_cbm(cbm_of(model)))

    @classmethod
    def of_cbm(cls, found: CbmTrees) -> ObliviousTrees:
        """Return the trees in CatBoost's own format; shallow trees are filled up with questions that no value exceeds."""
        count, depth = len(found.depth), int(found.depth.max(initial=0))
        asked = np.arange(depth) < found.depth[:, None]
        feature = np.zeros((count, depth), dtype=np.int64)
        border = np.full((count, depth), np.finfo(np.float32).max, dtype=np.float32)
        leaf = np.zeros((count, 1 << depth))
        feature[asked], border[asked] = found.feature, found.border
        leaf[np.arange(1 << depth) < (1 << found.depth)[:, None]] = found.leaf
        return cls(feature, border, leaf, found.scale, found.bias)

    def to_json(self) -> dict[str, JSON]:
        """Return the trees as JSON."""
        arrays = {name: getattr(self, name).ravel().tolist() for name in ("feature", "border", "leaf")}
        return {"shape": list(self.feature.shape), "scale": self.scale, "bias": self.bias} | arrays

    @classmethod
    def from_json(cls, document: Mapping[str, JSON]) -> ObliviousTrees:
        """Return the trees that `to_json` told of."""
        num_trees, depth = document["shape"]
        feature = np.array(document["feature"], dtype=np.int64).reshape(num_trees, depth)
        border = np.array(document["border"], dtype=np.float32).reshape(num_trees, depth)
        leaf = np.array(document["leaf"], dtype=np.float64).reshape(num_trees, 1 << depth)
        return cls(feature, border, leaf, document["scale"], document["bias"])

    def predict(self, features: Floats) -> Floats:
        """Return the ensemble's values, shape (num_rows,), for features of shape (num_rows, num_features)."""
        from dooly.predict._compiled import sums_of_leaves

        if features.shape[1] <= self.feature.max(initial=-1):
            raise ValueError(f"trees ask about feature {self.feature.max()} of {features.shape[1]}: they were fitted to others")
        sums = sums_of_leaves(np.ascontiguousarray(features, dtype=np.float32), self.feature, self.border, self.leaf)
        return np.asarray(self.scale * sums + self.bias)
