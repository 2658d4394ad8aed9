"""Check what callers of measuring give, before any work: each error is one line and names the argument."""

from __future__ import annotations

from numbers import Real

from dooly.catalog import check_store
from dooly.errors import InvalidInputError, spell


def check_run(  # noqa: PLR0913 - what callers of measuring give
    function: str, store: object, budget_s: object, target_error: object, progress: object, *, writes: bool = True
) -> None:
    """Check the store, the budget, the target and the progress callback of a function that measures.

    Raises:
        InvalidInputError: One of them is something else, or the store is open for reading and the function writes.
    """
    opened = check_store(function, store)
    if writes and not opened.writable:
        raise InvalidInputError(f"dooly.{function}: store: is open for reading; open it with mode='a' to write")
    if budget_s is not None and not _is_at_least_zero(budget_s):
        raise InvalidInputError(
            f"dooly.{function}: budget_s: {spell(budget_s)} is no number of seconds of at least 0; None measures everything"
        )
    if not (_is_at_least_zero(target_error) and float(target_error) <= 1):  # type: ignore[arg-type]  # a number by now
        raise InvalidInputError(
            f"dooly.{function}: target_error: {spell(target_error)} is no relative error from 0 to 1; 0.03 is 3 %, and 0 "
            "measures the whole grid"
        )
    if not callable(progress):
        raise InvalidInputError(
            f"dooly.{function}: progress: {spell(progress)} is not callable; give a function of (done, planned), or leave it out"
        )


def check_share(function: str, share: object) -> None:
    """Check a part of equal ones.

    Raises:
        InvalidInputError: It is none.
    """
    match share:
        case (int(number), int(count)) if 0 <= number < count:
            return
    raise InvalidInputError(
        f"dooly.{function}: share: {spell(share)} is no part of equal ones; give (number, count), the number from 0 to count - 1"
    )


def _is_at_least_zero(value: object) -> bool:
    """Tell whether a value is a number of at least 0; NaN is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) >= 0
