from __future__ import annotations

from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dooly.measure.engine._pieces import piece_name, watch_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TICKS = [10, 7, 1, 2, 30, 4, 5, 60, 8]
"""What passes between two marks, one after the other."""


class Network(nn.Module):
    """Two layers' states, the first of which runs two kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Callable[[str], None] = lambda _path: None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        for path in ("0.attn", "0.attn", "1.attn"):
            self.kernel(path)
        return x


class FakeEngine:
    """An engine whose states call back."""

    def __init__(self) -> None:
        self.network = Network()

    @contextmanager
    def watch_stateful(self, enter: Callable[[str], None], leave: Callable[[str], None]) -> Iterator[None]:
        """Call back around each kernel."""
        self.network.kernel = lambda path: (enter(path), leave(path))
        yield
        self.network.kernel = lambda _path: None


class FakeTimer:
    """Marks are numbers: what has passed by then."""

    def __init__(self) -> None:
        self._now, self._place = 0, count()

    def mark(self) -> int:
        """Let the next time pass."""
        self._now += TICKS[next(self._place)]
        return self._now


def test_a_forward_is_cut_into_pieces_and_states() -> None:
    """All of a forward's time is of a piece or a state; kernels of one state in a row are one operation, the time between too."""
    found: list[tuple[str, int]] = []
    engine: Any = FakeEngine()
    timer: Any = FakeTimer()
    with watch_pieces(engine, timer, lambda name, begin, end: found.append((name, end - begin))):
        engine.network(torch.ones(1))
    # Marks: begin 10, enter 17, left 18, left again 20, enter 50, left 54, end 59.
    assert found == [("piece 0.attn", 7), ("0.attn", 3), ("piece 1.attn", 30), ("1.attn", 4), ("piece ", 5)]
    engine.network(torch.ones(1))
    assert len(found) == 5, "what was watched is watched no more"


def test_the_last_piece_has_no_path() -> None:
    """What runs behind the last state goes by no path."""
    assert piece_name("") == "piece "
    assert piece_name("layers.0.attn") == "piece layers.0.attn"
