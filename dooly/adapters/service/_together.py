"""Predictions that are asked for at the same time are priced at once: many cost little more than one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dooly.adapters.service._server_state import server_latencies
from dooly.errors import OutOfDomainError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.adapters.service._served_model import ModelSlot, ServedModel
    from dooly.adapters.service._server_state import ServerLatency, ServerState

    Waiting = asyncio.Future[tuple[ServerLatency, ServedModel]]


def each_latency(served: ServedModel, states: Sequence[ServerState]) -> Sequence[ServerLatency | OutOfDomainError]:
    """Predict at once what fits the servers; where a step is beyond what was measured, its own state alone has the error."""
    try:
        return server_latencies(served.latency, served.config, states)
    except OutOfDomainError as error:
        if len(states) == 1:
            return [error]
        middle = len(states) // 2
        return [*each_latency(served, states[:middle]), *each_latency(served, states[middle:])]


class Together:
    """Gathers the predictions that come in one turn of the event loop."""

    def __init__(self, slot: ModelSlot) -> None:
        """Take where the model is held."""
        self._slot = slot
        self._waiting: list[tuple[ServerState, Waiting]] = []

    async def predict(self, state: ServerState) -> tuple[ServerLatency, ServedModel]:
        """Predict what a request would see, and tell by which model.

        Raises:
            OutOfDomainError: A step is beyond what was measured.
        """
        loop = asyncio.get_running_loop()
        answer: Waiting = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._price)
        self._waiting.append((state, answer))
        return await answer

    def _price(self) -> None:
        """Answer all that wait."""
        waiting, self._waiting = self._waiting, []
        served = self._slot.served
        try:
            found = each_latency(served, [state for state, _ in waiting])
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            found = [error] * len(waiting)  # type: ignore[list-item]  # raised below
        for (_, answer), latency in zip(waiting, found, strict=True):
            if answer.cancelled():
                continue
            if isinstance(latency, Exception):
                answer.set_exception(latency)
            else:
                answer.set_result((latency, served))
