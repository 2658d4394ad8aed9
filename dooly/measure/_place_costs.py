"""What it takes to run each place of a sweep, learnt on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_FIRST_GUESS_S = (0.05, 5e-4)
"""Seconds of a task, and of each unit of its size, before any was run."""


class PlaceCosts:
    """What tasks cost, learnt from those that were run: a constant and a part in proportion to each size of the place."""

    def __init__(self, sizes: Floats) -> None:
        """Take sizes of each place, such as tokens and cached positions, shape (num_places, num_sizes)."""
        self._terms = np.column_stack([np.ones(len(sizes)), sizes])
        self._run: list[tuple[int, float]] = []
        self._costs_s = _FIRST_GUESS_S[0] + _FIRST_GUESS_S[1] * self._terms[:, 1]

    def told(self, place: int, seconds: float) -> None:
        """Take in what a task at a place took."""
        from scipy.optimize import nnls

        self._run.append((place, seconds))
        terms, took = self._terms[[place for place, _ in self._run]], np.array([s for _, s in self._run])
        scale = np.maximum(self._terms.max(axis=0), 1e-9)
        weights, _ = nnls(terms / scale / took[:, None], np.ones(len(took)))
        self._costs_s = np.maximum(self._terms @ (weights / scale), took.min() / 2)

    def at(self, place: int) -> float:
        """Return the seconds that a task at a place is expected to take."""
        return float(self._costs_s[place])
