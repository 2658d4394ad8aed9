"""The grid of request rates."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dooly.searching._rates import copies_for, index_up_to, rate_at


def test_rates_grow_by_about_two_percent() -> None:
    """No two neighbours are equal, or further apart than three digits allow."""
    rates = [rate_at(index) for index in range(-400, 500)]
    assert all(1.009 < high / low < 1.04 for low, high in pairwise(rates))
    assert rate_at(0) == 1.0


@given(st.floats(1e-4, 1e5))
def test_the_last_rate_up_to_another_is_found(rate: float) -> None:
    """The place found does not exceed the rate, and the next one does."""
    index = index_up_to(rate)
    assert rate_at(index) <= rate < rate_at(index + 1)
    assert index_up_to(rate_at(index)) == index


@given(st.integers(1, 9999), st.integers(1, 40))
def test_copies_bear_what_is_demanded_and_none_is_idle(thousandths: int, copies: int) -> None:
    """As many are counted as bear the rate together, at the rate of one of whole copies not one more for a rounding error."""
    rate = thousandths / 1000
    assert copies_for(copies * rate, rate) == copies
    assert copies_for((copies - 0.5) * rate, rate) == copies
    assert copies_for(1e-12 * rate, rate) == 1
