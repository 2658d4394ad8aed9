"""What a device's power limit takes from work that runs on without a pause."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import InvalidInputError, spell

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class PowerCap:
    """What a device's power limit takes from products that run on without a pause; steps are priced as they run in short bursts.

    The limit acts on power over some time: products that follow each other run at full clocks for `burst_ns`, and slower from
    then on. What is no such product, and a pause, give that time back. A bucket of tokens, as networks have it, whose tokens are
    nanoseconds of such products.

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

    def products_of(self, num_tokens: int) -> int:
        """Return what the products of a step take that draw on the burst, by its tokens; beyond the table as at its end."""
        return int(self.products_ns[min(num_tokens, len(self.products_ns) - 1)])

    def capped_ns(self, spent_ns: int, pause_ns: int, step_ns: int, num_tokens: int) -> tuple[int, int]:
        """Return what a step takes, and how much of the burst is spent behind it.

        Steps that draw nothing need not be told: what passes until the next one is its pause.

        Args:
            spent_ns: What this said of the step before; 0 before the first.
            pause_ns: From when that one had run on the device to when this one starts there, behind what is before it.
            step_ns: What the step takes at full clocks.
            num_tokens: Its tokens.
        """
        products_ns = min(step_ns, self.products_of(num_tokens))
        spent_ns = max(0, spent_ns - pause_ns - (step_ns - products_ns)) + products_ns
        slow_ns = max(0, spent_ns - self.burst_ns)
        return step_ns + slow_ns * self.slowdown_permille // 1000, min(spent_ns, self.burst_ns)

    def most_added_ns(self, steps_ns: npt.NDArray[np.float64], num_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the most that the limit adds to steps: to each that has followed its like for long without a pause.

        Args:
            steps_ns: What they take at full clocks, in nanoseconds, shape (num_steps,).
            num_tokens: Their tokens, shape (num_steps,).
        """
        products_ns = np.minimum(steps_ns, self.products_ns[np.minimum(num_tokens, len(self.products_ns) - 1)])
        regained_ns = np.minimum(steps_ns - products_ns, self.burst_ns)
        slow_ns = np.maximum(products_ns - regained_ns, 0)
        return np.asarray(slow_ns * self.slowdown_permille // 1000)


class PacedDevice:
    """A device on which steps run one after the other, under its power limit if it has one that is known.

    Examples:
        >>> latency = dooly.load_latency_model(model=dooly.find_model("llama-3.1-8b"), hardware="h200")
        >>> device, prompt, now_ns = PacedDevice(latency.power_cap), dooly.Batch((2048,), (0,)), 0
        >>> for _ in range(4):
        ...     now_ns += device.run_ns(now_ns, latency.step_ns(prompt), prompt.num_tokens)
        >>> now_ns == 4 * latency.step_ns(prompt) + device.slowed_ns, device.slowed_ns > 0
        (True, True)
    """

    def __init__(self, cap: PowerCap | None) -> None:
        """Start with nothing spent.

        Args:
            cap: As a predictor's `power_cap` is; None never slows a step.
        """
        self.slowed_ns = 0
        """What the limit has added to steps so far."""
        self._cap = cap
        self._spent_ns = self._ran_ns = 0

    def draws(self, num_tokens: int) -> bool:
        """Tell whether a step of so many tokens draws on the burst."""
        return self._cap is not None and self._cap.products_of(num_tokens) > 0

    def run_ns(self, start_ns: int, step_ns: int, num_tokens: int) -> int:
        """Run a step that starts then, and return what it takes.

        Args:
            start_ns: When it starts on the device. One that starts before the last has run by these times, as a real step does
                whose forerunner was predicted to take longer, had no pause.
            step_ns: What it takes at full clocks.
            num_tokens: Its tokens.

        Raises:
            InvalidInputError: A time is no whole number of nanoseconds, as seconds are.
        """
        if not (isinstance(start_ns, Integral) and isinstance(step_ns, Integral)):
            raise InvalidInputError(
                f"PacedDevice.run_ns: start_ns {spell(start_ns)} and step_ns {spell(step_ns)} must be whole nanoseconds, as "
                "step_ns() returns them"
            )
        if self._cap is None or not self.draws(num_tokens):
            return step_ns
        pause_ns = max(0, start_ns - self._ran_ns)
        capped_ns, self._spent_ns = self._cap.capped_ns(self._spent_ns, pause_ns, step_ns, num_tokens)
        self._ran_ns = start_ns + capped_ns
        self.slowed_ns += capped_ns - step_ns
        return capped_ns
