"""Operations by the families that they belong to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dooly.predict._families import BlockScaledLinear
from dooly.predict._kinds import LinearLayer


def _takes(*latency_ns: float) -> Any:  # noqa: ANN401 - what has the latencies and error of a family
    return SimpleNamespace(latency_ns=lambda *_: np.array(latency_ns), relative_error=latency_ns[0] / 1e6)


def test_launches_do_not_price_products_in_blocks() -> None:
    """Shorter than launches, a product in blocks takes what one of a single scale does, and never more than its own rows say."""
    latency = BlockScaledLinear(_takes(60e3, 60e3, 300e3), _takes(8e3, 70e3, 200e3), launches_ns=100e3)
    work: Any = None
    assert latency.latency_ns(work, work).tolist() == [8e3, 60e3, 300e3]
    assert latency.relative_error == pytest.approx(0.06)


def test_small_products_in_blocks_are_fast_on_an_h200() -> None:
    """The tables say 60 us of them, whose weights the memory moves in two."""
    from dooly.predict._device_latencies import DeviceLatencies
    from dooly.predict._fit_hardware import device_folder

    with device_folder("h200") as folder:
        device = DeviceLatencies(folder)
        found = device._linear_layer(LinearLayer(3072, 1536, "fp8_block"))
    assert isinstance(found, BlockScaledLinear)
    assert found.blocks.regressor is not found.single.regressor
    assert 60e3 < found.launches_ns < 300e3
