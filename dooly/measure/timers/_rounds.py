"""How many rounds of samples are enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_ROUNDS, MAX_ROUNDS = 3, 30
_MIN_SAMPLES = 8
_TIGHT = 0.02


def is_tight(samples: Sequence[int]) -> bool:
    """Tell whether the 95 % confidence interval of the median (by order statistics) is within 2 % of it."""
    count = len(samples)
    if count < _MIN_SAMPLES:
        return False
    ordered = np.sort(np.asarray(samples))
    half = 0.98 * np.sqrt(count)
    low, high = ordered[max(0, int(count / 2 - half))], ordered[min(count - 1, int(count / 2 + half))]
    return bool(high - low <= 2 * _TIGHT * np.median(ordered))
