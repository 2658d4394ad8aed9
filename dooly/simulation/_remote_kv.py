"""Which requests' KV caches another engine has computed, and how far they are on their way, as vLLM's KV connectors have it.

A request that waits gets blocks for all that is known of it as soon as there is room, and loads into them beside the steps; it
takes none of their slots or tokens. When the load has ended it is admitted before all that wait, in the order that loads began,
and computes its last known token, which generates the next. One that is preempted later computes its prompt itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Load(NamedTuple):
    """A KV cache that an engine begins to load."""

    request: int
    """Its position in the workload."""
    num_tokens: int
    """Tokens that the other engine has computed."""
    num_cached: int
    """Those of them that need not be loaded: the engine has them itself."""


class RemoteKV:
    """The KV caches of a workload's requests elsewhere."""

    def __init__(self, num_tokens: Sequence[int] = (), *, keeps_finished: bool = False) -> None:
        """Start with none loaded.

        Args:
            num_tokens: Tokens of each request that another engine has computed; none for no request.
            keeps_finished: Whether blocks of requests that have ended are kept, for another engine to load, until it is done.
        """
        self.keeps_finished = keeps_finished
        self._num_tokens = dict(enumerate(num_tokens))
        self._loading: dict[int, int] = {}
        """Tokens that each request loads which holds blocks and is in no step, in the order that loads began."""
        self._loaded: set[int] = set()
        """Those of them whose load has ended."""
        self._started: list[Load] = []

    @property
    def num_blocked(self) -> int:
        """Requests that hold blocks and are in no step: loading, or loaded."""
        return len(self._loading)

    def num_tokens(self, request: int) -> int:
        """Return how many tokens of a request another engine has; 0 once they are here."""
        return self._num_tokens.get(request, 0)

    def start(self, request: int, num_cached: int) -> None:
        """Begin to load a request."""
        self._loading[request] = num_tokens = self._num_tokens.pop(request)
        self._started.append(Load(request, num_tokens, num_cached))

    def skip(self, request: int) -> None:
        """Note that a request is admitted without a load: all of it is here, if anything was elsewhere."""
        if num_tokens := self._num_tokens.pop(request, 0):
            self._started.append(Load(request, num_tokens, num_tokens))

    @property
    def has_started(self) -> bool:
        """Whether a load has begun that nobody asked about since: when it will have ended, nobody knows yet."""
        return bool(self._started)

    def take_started(self) -> list[Load]:
        """Return the loads that have begun since this was asked last."""
        started, self._started = self._started, []
        return started

    def finish(self, request: int) -> int:
        """Note that a request is loaded; return how many of its tokens are here."""
        self._loaded.add(request)
        return self._loading[request]

    @property
    def has_loaded(self) -> bool:
        """Whether a load has ended whose request is in no step."""
        return bool(self._loaded)

    def take_loaded(self) -> int:
        """Take the request whose load began first of those that have ended."""
        request = next(request for request in self._loading if request in self._loaded)
        del self._loading[request]
        self._loaded.remove(request)
        return request
