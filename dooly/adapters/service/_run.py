"""Run the service until it is told to stop."""

from __future__ import annotations

import gc
import signal
import sys
from socket import AF_INET6, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, getaddrinfo, socket
from typing import TYPE_CHECKING

import uvicorn

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

_BACKLOG = 2048
_MAX_CONNECTIONS = 1024
"""Connections beyond which requests are refused with 503, instead of waiting."""
_SWITCH_INTERVAL_S = 0.001


class _Server(uvicorn.Server):
    """A server that says when it listens, and where."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[str], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Open the port, and say so."""
        await super().startup(sockets)
        for server in self.servers:
            for opened in server.sockets:
                host, port, *_ = opened.getsockname()
                self._listening(f"http://[{host}]:{port}" if opened.family == AF_INET6 else f"http://{host}:{port}")


def run_service(app: FastAPI, host: str, port: int, *, stop_s: float, listening: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, from the main thread; requests in flight are answered then, for so long at most.

    Signal handlers, how threads take turns and what the garbage collector looks at are as before when it has stopped.

    Args:
        app: The service.
        host: Address to listen on.
        port: Port; 0 takes one that is free.
        stop_s: Seconds that requests in flight have when it stops.
        listening: Told the URL once it listens.

    Raises:
        InvalidInputError: Nothing can listen there: the port is taken, or the address is none of this machine.
    """
    _check_free(host, port)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        backlog=_BACKLOG,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(stop_s)),
        server_header=False,
    )
    server = _Server(config, listening)

    def stopped(_number: int, _frame: object) -> None:
        """End the server before it begins; uvicorn raises what stopped it once more when it has: that is a good end."""
        server.should_exit = True

    before = {number: signal.signal(number, stopped) for number in (signal.SIGINT, signal.SIGTERM)}
    # Bulks are priced in threads: what waits for the interpreter beside them waits a millisecond, not five. What is loaded stays:
    # a collection of garbage need not look at it again.
    interval = sys.getswitchinterval()
    gc.collect()
    try:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        gc.freeze()
        server.run()
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_free(host: str, port: int) -> None:
    """Raise unless the address can be listened on now: uvicorn would end the process without saying what to do."""
    try:
        family, kind, protocol, _, address = getaddrinfo(host, port, type=SOCK_STREAM)[0]
        with socket(family, kind, protocol) as probe:
            probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise InvalidInputError(
            f"--host, --port: {host}:{port} cannot be listened on ({error.strerror}); give another, or --port 0 for a free one"
        ) from error
