"""Steps behind each other on a server's host and its device: when the host knows what has run, and schedules the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.latency import HostTimes
from dooly.power_cap import PacedDevice

if TYPE_CHECKING:
    from dooly.predict import LatencyModel

_MOST_RUNS = 16
"""Runs of a step that are laid one by one: by then a power limit takes from each what it takes from the next."""


class Timeline:
    """A host and a device that are idle at first, in nanoseconds from then."""

    def __init__(self, latency: LatencyModel) -> None:
        """Take what an engine's host takes, whether it schedules ahead, and its device's power limit."""
        self._host = latency.host or HostTimes()
        self._is_ahead = latency.schedules_ahead
        self._device = PacedDevice(latency.power_cap)
        self._free_ns = 0
        self.now_ns = 0
        """When the host schedules the next step: it knows what has run of those before."""

    def run(self, device_ns: int, launch_ns: int, num_tokens: int, times: float = 1.0) -> None:
        """Run a step.

        Args:
            device_ns: What it takes on the device, in short bursts.
            launch_ns: What launching it takes.
            num_tokens: Its tokens.
            times: How often it runs; a part of a time takes its part.
        """
        prepare_ns = self._host.prepare_ns
        took_ns = self._paced_ns(max(self._free_ns, self.now_ns + prepare_ns), device_ns, num_tokens, times)
        launch_ns = round(times * launch_ns)
        if self._is_ahead:
            self._free_ns, self.now_ns = self._host.launched_ns(self.now_ns, self._free_ns, launch_ns, took_ns)
        else:
            self.now_ns += max(round(times * prepare_ns) + took_ns, launch_ns)
            self._free_ns = self.now_ns

    def first_token(self, decode_ns: int, launch_ns: int, num_tokens: int) -> int:
        """Return when the token of the last step is known: one that schedules ahead launches the decode behind it before that."""
        if self._is_ahead:
            self.run(decode_ns, launch_ns, num_tokens)
        return self.now_ns

    def _paced_ns(self, start_ns: int, device_ns: int, num_tokens: int, times: float) -> int:
        """Return what runs of a step take under the power limit."""
        if not self._device.draws(num_tokens):
            return round(times * device_ns)
        took_ns, last_ns, left = 0.0, device_ns, times
        for _ in range(_MOST_RUNS):
            if left <= 0:
                break
            last_ns = self._device.run_ns(start_ns + round(took_ns), device_ns, num_tokens)
            took_ns += min(left, 1.0) * last_ns
            left -= 1.0
        return round(took_ns + max(left, 0.0) * last_ns)
