"""What a device's power limit takes from work that runs on without a pause."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Integral
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dooly.latency import LatencyBackend


@dataclass(frozen=True, slots=True, eq=False)
class PowerCap:
    """What a device's power limit takes from products that run on without a pause; steps are priced as they run in short bursts.

    The limit acts on power over some time: products that follow each other run at full clocks for `burst_ns`, and slower from
    then on. What is no such product, and a pause, give that time back. Steps of decodes are bound by memory, and need less: only
    steps with prompts draw on it.

    Raises:
        InvalidInputError: A time is negative or no whole number, or there is none.
    """

    products_ns: npt.NDArray[np.int64]
    """What a step's products that are bound by arithmetic take at full clocks, by its tokens from 0, shape (num_tokens + 1,)."""
    burst_ns: int
    """How long they run at full clocks."""
    slowdown_permille: int
    """How much longer they take from then on, in thousandths."""

    def __post_init__(self) -> None:
        whole = all(isinstance(number, Integral) and number >= 0 for number in (self.burst_ns, self.slowdown_permille))
        if not whole or not len(self.products_ns) or not 0 <= min(self.products_ns) < inf:
            raise InvalidInputError(
                f"PowerCap: {self.burst_ns} ns, {self.slowdown_permille} thousandths and the times of products must be whole "
                "numbers of at least 0, one or more of the last"
            )

    def capped_ns(self, heat_ns: int, pause_ns: int, step_ns: int, num_tokens: int) -> tuple[int, int]:
        """Return what a step with prompts takes, and how much of the burst is spent behind it.

        Steps of decodes take what they take, and are passed over.

        Args:
            heat_ns: What this said of the last step with prompts; 0 before the first.
            pause_ns: From when that one had run on the device to when this one starts there, behind what is before it.
            step_ns: What the step takes at full clocks.
            num_tokens: Its tokens.
        """
        products_ns = min(step_ns, int(self.products_ns[min(num_tokens, len(self.products_ns) - 1)]))
        spent_ns = max(0, heat_ns - pause_ns - (step_ns - products_ns)) + products_ns
        slow_ns = max(0, spent_ns - self.burst_ns)
        return step_ns + slow_ns * self.slowdown_permille // 1000, min(spent_ns, self.burst_ns)


def power_cap_of(latency: LatencyBackend) -> PowerCap | None:
    """Return the power limit that a predictor knows of its device."""
    known: PowerCap | None = getattr(latency, "power_cap", None)
    return known
