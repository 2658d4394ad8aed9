"""Fits kept in the store of their records, so that a model is fitted once and loads without its records and without CatBoost.

Each lies under a digest of all that it was fitted on: which records its operations have, the operations' closed forms, and the
code that fits. Whoever measures more, or fits otherwise, finds another digest. A name begins with the code's, so that what other
code left can be told without reading it, and goes when a profile folds its records.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dbstore import RecordNotFoundError, StoreError
from dooly.catalog import installed_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbstore import JSON, Store
    from dooly.predict._family import FamilyRegressor
    from dooly.tracing import TracedOperation

_SHAPES_A_FIT = (
    "predict/*.py",
    *(f"catalog/{name}.py" for name in ("_grid", "_points", "_records", "_relatives")),
    *(f"tracing/{name}.py" for name in ("_forms", "_model")),
    "engines/_config.py",
    "batch.py",
    "dtypes.py",
)
_FITTED_WITH = ("catboost", "scipy", "numpy")


class KeptFits:
    """Makes fits to the records of one environment, and keeps them in a store that is open for writing."""

    def __init__(self, store: Store, environment: str) -> None:
        """Take the store that holds the records, and the digest of their environment."""
        self._store = store
        self.environment = environment
        """Digest of the records' environment."""
        self._known: dict[str, JSON] = {}

    def get(self, what: str, operations: Sequence[TracedOperation], make: Callable[[], JSON], *more: JSON) -> JSON:
        """Return a fit, from the store where it was made before.

        Args:
            what: What is fitted, such as `operation`.
            operations: The operations to whose records it is fitted.
            make: Makes the fit, as JSON.
            *more: What else it depends on.
        """
        name = self.name(what, operations, *more)
        try:
            return self._store.read_document("regressors", name)["fit"]
        except StoreError as reason:  # none, or one that was damaged and stays so
            fit = make()
            if self._store.writable and isinstance(reason, RecordNotFoundError):
                with suppress(StoreError):  # a disk that is full costs the next fit, not this answer
                    self._store.write_document("regressors", name, {"fit": fit})
            return fit

    def name(self, what: str, operations: Sequence[TracedOperation], *more: JSON) -> str:
        """Return what a fit lies under, from the same arguments as `get`: what is fitted to it depends on it by its name."""
        found = [_version(), what, self.environment, [self._facts(op) for op in operations], *more]
        return f"{_prefix()}{hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32]}"

    def _facts(self, operation: TracedOperation) -> JSON:
        """Return what the fits of an operation depend on; of its records, which there are."""
        signature = operation.signature
        if signature not in self._known:
            self._known[signature] = self._store.groups(signature, self.environment)
        forms = [operation.request_dims, operation.request_flops, operation.request_bytes, dict(operation.attributes)]
        return [signature, self._known[signature], forms]


def drop_fits_of_other_code(store: Store) -> None:
    """Remove the fits that this code did not make, and so never finds, from a store that is open for writing."""
    for name in store.documents("regressors"):
        if not name.startswith(_prefix()):
            store.remove_regressor(name)


def pack_families(regressors: Sequence[FamilyRegressor] | None) -> JSON:
    """Return families' regressors as JSON: CatBoost's own format, compressed."""
    if regressors is None:
        return None
    return [base64.b64encode(lzma.compress(regressor.cbm, preset=1)).decode() for regressor in regressors]


def unpack_families(packed: JSON) -> tuple[FamilyRegressor, ...] | None:
    """Return what `pack_families` packed."""
    from dooly.predict._family import FamilyRegressor

    if packed is None:
        return None
    return tuple(FamilyRegressor.of_cbm(lzma.decompress(base64.b64decode(text))) for text in packed)


def fitting_code() -> tuple[Path, ...]:
    """Return the files of this package that shape a fit, whichever module of it calls them."""
    root = Path(__file__).parents[1]
    return tuple(sorted(file for pattern in _SHAPES_A_FIT for file in root.glob(pattern)))


def _prefix() -> str:
    return f"{_version()[:8]}-"


@cache
def _version() -> str:
    code = "".join(f"{file.name}\n{file.read_text(encoding='utf-8')}" for file in fitting_code())
    libraries = [installed_version(name) for name in _FITTED_WITH]
    return hashlib.sha256(f"{libraries} {code}".encode()).hexdigest()
