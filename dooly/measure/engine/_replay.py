"""Replay operations in isolation, with the arguments, attention metadata and KV cache of a real engine step."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from dooly.measure.timers import MAX_ROUNDS, MIN_ROUNDS, Call, is_tight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from dbstore import JSON
    from dooly.catalog import Key
    from dooly.measure.timers import Timer


@dataclass(slots=True)
class Replay:
    """Times the modules that a step calls, one after the other, in the order in which the step called them.

    Attach it to the modules of a running model, run one step, and read `samples_ns`: decoder modules are replayed when the
    model's forward ends, while its forward context still stands; the others right after their own call.
    """

    timer: Timer
    """How calls are timed."""
    targets: Mapping[nn.Module, Key | None]
    """Key of the operation that each module to time runs; None for one that runs untimed, to keep the cache cold."""
    budget_ns: int
    """Time to spend at most on one group of modules that are replayed together."""
    samples_ns: dict[Key, list[int]] = field(default_factory=dict)
    """What was measured, by the operation's key."""
    attributes: dict[Key, dict[str, JSON]] = field(default_factory=dict)
    """How it was measured, by the operation's key: `timing`, several joined by `+`; `host_ahead`, whether no sample holds
    launches of the host; `overhead_ns`, where something was taken off each time of a captured graph."""
    _calls: list[Call] = field(default_factory=list)
    _in_forward: bool = False

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """Capture and replay every target within the scope, at the end of the forward of `network` that calls it."""
        handles = [network.register_forward_pre_hook(self._enter), network.register_forward_hook(self._leave)]
        for module, key in self.targets.items():
            handles.append(module.register_forward_pre_hook(partial(self._capture, key), with_kwargs=True))
            handles.append(module.register_forward_hook(self._after_call))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _capture(self, key: Key | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Where `forward` leads to the call, and so to here, the module says what the call runs.
        forward = getattr(module, "called_forward", module.forward)
        self._calls.append(Call(key, partial(forward, *args, **kwargs)))

    def _enter(self, *_arguments: object) -> None:
        self._in_forward = True

    def _leave(self, *_arguments: object) -> None:
        self._in_forward = False
        self._run()

    def _after_call(self, *_arguments: object) -> None:
        if not self._in_forward:
            self._run()

    def _run(self) -> None:
        calls, self._calls = self._calls, []
        if any(call.key is not None for call in calls):
            self._rounds(calls)

    def _rounds(self, calls: Sequence[Call]) -> None:
        begin = time.perf_counter_ns()
        prepared = self.timer.prepare(calls)
        found: dict[Key, list[int]] = {}
        host_ahead = True
        for round_ in range(MAX_ROUNDS):
            elapsed = prepared.time_ns()
            if round_ == 0:
                continue
            host_ahead &= prepared.host_ahead
            for call, elapsed_ns in zip(calls, elapsed, strict=True):
                if call.key is not None and elapsed_ns is not None:
                    found.setdefault(call.key, []).append(elapsed_ns)
            enough = all(map(is_tight, found.values())) or time.perf_counter_ns() - begin > self.budget_ns
            if round_ + 1 >= MIN_ROUNDS and enough:
                break
        for key, samples in found.items():
            self.samples_ns.setdefault(key, []).extend(samples)
            timings: set[str] = {timing for call, timing in zip(calls, prepared.timings, strict=True) if call.key == key}
            self._describe(key, timings, host_ahead)

    def _describe(self, key: Key, timings: set[str], host_ahead: bool) -> None:  # noqa: FBT001 - a fact
        """Note how samples were taken, beside how the samples before them were."""
        known = self.attributes.get(key)
        if known is not None:
            timings = {*timings, *str(known["timing"]).split("+")}
            host_ahead = host_ahead and bool(known["host_ahead"])
        self.attributes[key] = {"timing": "+".join(sorted(timings)), "host_ahead": host_ahead}
        if overhead_ns := self.timer.overhead_ns:
            self.attributes[key]["overhead_ns"] = overhead_ns
