"""Which steps were launched and have not run: at most the latest, when the next is scheduled."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dooly.simulation._steps import Progress


class UnderWay:
    """The latest step, or steps taken together, and the one that had not run when it was scheduled."""

    def __init__(self) -> None:
        """Create with none under way."""
        self._num_steps = 0
        self._latest: Progress | None = None
        self._behind: Progress | None = None

    def launch(self, progress: Progress) -> None:
        """Note that steps are launched."""
        self._behind = self._latest if self._num_steps else None
        self._latest = progress
        self._num_steps += progress.num_steps

    def retire(self, progress: Progress) -> None:
        """Note that steps have run."""
        self._num_steps -= progress.num_steps

    def generates(self, request: npt.NDArray[np.int64]) -> bool:
        """Return whether a step that has not run generates a token of a request, one position of shape (1,)."""
        return bool(self._num_steps) and self._latest is not None and request in self._latest.generated

    def holds_input_of(self, request: npt.NDArray[np.int64]) -> bool:
        """Return whether a request's latest step is a decode of a token that was not known when it was scheduled, nor has run.

        The block that such a token fills cannot be found again yet. `request` is one position, of shape (1,).
        """
        latest, behind = self._latest, self._behind
        if latest is None or not self.generates(request):
            return False
        return latest.num_steps > 1 or (behind is not None and request in behind.generated)
