"""Regressors kept in the store of their records, so that a model is fitted once and loads without CatBoost.

Each lies under a digest of all that it was fitted on: whoever measures more, or fits otherwise, finds another digest. The trees
are kept as arrays and not in CatBoost's own format, since loading CatBoost alone takes longer than reading them all.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dbstore import DamagedRecordError, RecordNotFoundError
from dooly.catalog import installed_version
from dooly.predict._regressor import Regressor, fit_regressor

if TYPE_CHECKING:
    import numpy.typing as npt

    from dbstore import Store

    Floats = npt.NDArray[np.float64]

_SHAPES_A_FIT = ("_regressor.py", "_trees.py")


class KeptRegressors:
    """Fits regressors, and keeps them in a store that is open for writing."""

    def __init__(self, store: Store) -> None:
        """Take the store that holds the records."""
        self._store = store

    def fit(self, terms: Floats, features: Floats, latency_ns: Floats) -> Regressor:
        """Return what `fit_regressor` returns, from the store where it was fitted before."""
        name = _digest(terms, features, latency_ns)
        try:
            return Regressor.from_json(self._store.read_document("regressors", name))
        except (RecordNotFoundError, DamagedRecordError) as reason:
            regressor = fit_regressor(terms, features, latency_ns)
            if self._store.writable and isinstance(reason, RecordNotFoundError):
                self._store.write_document("regressors", name, regressor.to_json())
            return regressor


def _digest(*arrays: Floats) -> str:
    """Return 32 hexadecimal digits of arrays and of what fits regressors to them."""
    digest = hashlib.sha256(_version().encode())
    for array in arrays:
        digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array, dtype="<f8").tobytes())
    return digest.hexdigest()[:32]


@cache
def _version() -> str:
    code = "".join(Path(__file__).with_name(name).read_text() for name in _SHAPES_A_FIT)
    return f"{installed_version('catboost')} {code}"
