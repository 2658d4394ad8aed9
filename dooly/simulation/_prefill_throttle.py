"""Prompts held back to every so many steps, as vLLM (0.32) does it in ranks that share a model's experts and step together."""

from __future__ import annotations


class PrefillThrottle:
    """Tells which steps leave prompts to later ones: decodes then fill steps of about one length on all ranks.

    Prompts are not held back while more wait than the last step that took some had room for.
    """

    def __init__(self, interval: int) -> None:
        """Take the number of steps of which one takes prompts."""
        self._interval = interval
        self._num_steps = 0
        self._is_full = False

    def start_wave(self, num_steps: int = 0) -> None:
        """Count steps from here on, as when the engine was idle, or as others count that were not."""
        self._num_steps = num_steps

    @property
    def is_active(self) -> bool:
        """Whether any step holds prompts back."""
        return self._interval > 1

    def defers(self) -> bool:
        """Begin a step, and return whether it holds prompts back if others decode."""
        holds_back = self._num_steps % self._interval != 0 and not self._is_full
        self._num_steps += 1
        return holds_back

    def repeat(self, num_steps: int, *, is_full: bool) -> None:
        """Begin so many steps, in each of which others decode; those that take prompts leave requests waiting or not."""
        for _ in range(num_steps if self.is_active else 0):
            if not self.defers():
                self.note(is_full=is_full)

    def note(self, *, is_full: bool) -> None:
        """Note whether requests are left waiting by a step that takes prompts."""
        self._is_full = is_full
