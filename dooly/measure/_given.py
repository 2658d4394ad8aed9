"""Check what callers of measuring give, before any work: each error is one line and names the argument."""

from __future__ import annotations

from numbers import Real

from dooly.catalog import check_store
from dooly.errors import InvalidInputError, spell


def check_run(function: str, store: object, budget_s: object, progress: object) -> None:
    """Check the store, the budget and the progress callback of a function that measures.

    Raises:
        InvalidInputError: One of them is something else.
    """
    check_store(function, store)
    is_number = isinstance(budget_s, Real) and not isinstance(budget_s, bool)
    if budget_s is not None and not (is_number and budget_s >= 0):  # type: ignore[operator]  # NaN is no budget either
        raise InvalidInputError(
            f"dooly.{function}: budget_s: {spell(budget_s)} is no number of seconds of at least 0; None measures everything"
        )
    if not callable(progress):
        raise InvalidInputError(
            f"dooly.{function}: progress: {spell(progress)} is not callable; give a function of (done, planned), or leave it out"
        )
