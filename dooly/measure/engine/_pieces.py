"""Time a compiled model inside real steps: its stateful operations, and the compiled pieces between them.

The engine compiles the whole model into one function, which calls nothing of Python's but the stateful operations. So these are
watched: a piece runs from the end of one to the begin of the next, from the begin of the forward to the first, or from the last
to the end. Nothing of what the engine runs is changed.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dooly.engines import Engine
    from dooly.measure.timers import Timer

    Note = Callable[[str, Any, Any], None]
    """Takes the name of a part of a step, and the marks of its begin and its end."""


def piece_name(path: str) -> str:
    """Return what the piece that runs up to the stateful module at a path goes by among the parts of a step."""
    return f"piece {path}"


@contextmanager
def watch_pieces(engine: Engine, timer: Timer, note: Note) -> Iterator[None]:
    """Note each piece and each stateful operation of the forwards within the scope, the latter by its module's path."""
    clock = _PieceClock(timer, note)
    hooks = [
        engine.network.register_forward_pre_hook(lambda *_: clock.begin()),
        engine.network.register_forward_hook(lambda *_: clock.finish()),
    ]
    try:
        with engine.watch_stateful(clock.enter, clock.leave):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _PieceClock:
    """Cuts a forward into pieces and stateful operations; a module that is entered several times in a row is one operation."""

    def __init__(self, timer: Timer, note: Note) -> None:
        self._timer, self._note = timer, note
        self._path: str | None = None
        self._entered: Any = None
        self._left: Any = None

    def begin(self) -> None:
        self._path = None
        self._left = self._timer.mark()

    def enter(self, path: str) -> None:
        if path == self._path:
            return
        now = self._timer.mark()
        self._close()
        self._note(piece_name(path), self._left, now)
        self._path, self._entered = path, now

    def leave(self, _path: str) -> None:
        self._left = self._timer.mark()

    def finish(self) -> None:
        self._close()
        self._note(piece_name(""), self._left, self._timer.mark())

    def _close(self) -> None:
        if self._path is not None:
            self._note(self._path, self._entered, self._left)
