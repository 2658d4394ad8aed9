"""What stands between the network and the application: limits on size and time, and what is counted."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, MutableMapping

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_LATE, _TOO_LARGE, _FAILED, _TOO_SLOW = 408, 413, 500, 503
_log = logging.getLogger("dooly.serve")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 10)


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What one request may take."""

    body_bytes: int = 4 << 20
    """Largest body."""
    seconds: float = 10.0
    """Longest time from a request's header to its answer; a connection whose header does not end is left open, as one of all."""
    num_threads: int = 4
    """Threads that price long bulks and steps: what waits for one is dropped with its request."""
    reload_s: float = 5.0
    """Seconds between two looks at a store; 0 never looks again."""

    def __post_init__(self) -> None:
        if self.body_bytes < 1 or not 0 < self.seconds < inf or self.num_threads < 1 or not 0 <= self.reload_s < inf:
            raise InvalidInputError(
                f"ServiceLimits: body_bytes {self.body_bytes}, seconds {self.seconds}, num_threads {self.num_threads}, reload_s "
                f"{self.reload_s}; give a byte, some time, a thread, and a pause of at least 0"
            )


class Metrics:
    """What Prometheus is told."""

    def __init__(self) -> None:
        """Make the metrics of one service."""
        self._registry = CollectorRegistry()
        self.requests = Counter("dooly_requests", "Requests answered.", ("path", "status"), registry=self._registry)
        self.seconds = Histogram("dooly_request_seconds", "Time to answer.", ("path",), buckets=_SECONDS, registry=self._registry)
        self.predictions = Counter("dooly_predictions", "Predictions made.", ("path",), registry=self._registry)
        self.loaded = Gauge("dooly_model_loaded_timestamp_seconds", "When the latencies were loaded.", registry=self._registry)
        self.refused = Gauge("dooly_store_refused", "1 where the store changed and cannot be served.", registry=self._registry)

        self._of: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        """Requests and seconds by path and status: looking their labels up takes a tenth of what a request does otherwise."""

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        if (found := self._of.get((path, status))) is None:
            found = self._of[path, status] = self.requests.labels(path, str(status)), self.seconds.labels(path)
        found[0].inc()
        found[1].observe(seconds)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class Guard:
    """ASGI middleware: refuses bodies that are too large and answers that take too long, each in one line; counts all."""

    def __init__(self, app: Application, limits: ServiceLimits, metrics: Metrics, paths: Collection[str]) -> None:
        """Wrap an application; requests to other paths than these are counted as `other`."""
        self._app, self._limits, self._metrics, self._paths = app, limits, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s, status, has_come = time.perf_counter(), 0, False

        async def sent(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async def received() -> Message:
            nonlocal has_come
            message = await receive()
            has_come = not message.get("more_body", False)
            return message

        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._app(scope, self._bounded(scope, received), sent)
        except TimeoutError:
            if not status and not has_come:
                await _refuse(sent, _LATE, f"body: has not come within {self._limits.seconds:g} s; send it at once")
            elif not status:
                await _refuse(sent, _TOO_SLOW, f"took longer than {self._limits.seconds:g} s; send less at once")
        except HTTPException as refusal:
            await _refuse(sent, refusal.status_code, refusal.detail)
        except Exception:  # noqa: BLE001 - the boundary
            _log.exception("%s: failed", scope["path"])
            if not status:
                await _refuse(sent, _FAILED, "an error of Dooly's own; its log has the traceback")
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.answered(path, status, time.perf_counter() - started_s)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Return what receives a body up to the limit, and raises what the application passes on beyond it."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        left = self._limits.body_bytes
        refusal = HTTPException(_TOO_LARGE, f"body: larger than {self._limits.body_bytes} bytes; send less at once")

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise refusal
            return message

        if announced.isdigit() and int(announced) > self._limits.body_bytes:
            raise refusal
        return bounded


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
