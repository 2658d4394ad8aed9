"""Operations by the families that they belong to."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dooly.predict._families import BLOCKS_ERROR, BlockScaledLinear, without_launches_ns
from dooly.predict._kinds import LinearLayer


def _takes(*latency_ns: float) -> Any:  # noqa: ANN401 - what has the latencies and error of a family
    return SimpleNamespace(latency_ns=lambda *_: np.array(latency_ns), relative_error=latency_ns[0] / 1e6)


def test_launches_do_not_price_products_in_blocks() -> None:
    """Shorter than launches, a product in blocks takes what one of a single scale does, and never more than its own rows say."""
    latency = BlockScaledLinear(_takes(60e3, 60e3, 300e3), _takes(8e3, 70e3, 200e3), launches_ns=100e3)
    work: Any = None
    assert latency.latency_ns(work, work).tolist() == [8e3, 60e3, 300e3]
    assert latency.relative_error == BLOCKS_ERROR
    assert replace(latency, single=_takes(300e3)).relative_error == pytest.approx(0.3)


TIMES_NS = st.floats(1, 1e6) | st.floats(-1, 1).map(lambda offset_ns: 1e5 + offset_ns)


@given(TIMES_NS, TIMES_NS, TIMES_NS, TIMES_NS)
def test_more_work_in_blocks_takes_longer(blocks: float, single: float, more_blocks: float, more_single: float) -> None:
    """Where both tables say more; and a nanosecond more in the tables adds three at most, also where launches end."""
    given_blocks, given_single = (
        np.array([blocks, blocks + more_blocks, blocks + 1]),
        np.array([single, single + more_single, single + 1]),
    )
    fewer, more, next_ns = without_launches_ns(given_blocks, given_single, 1e5).tolist()
    assert fewer <= more * (1 + 1e-12)
    assert next_ns - fewer <= 3.01


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


@pytest.mark.parametrize("device", ["h200", "h100"])
def test_products_in_blocks_jump_no_further_than_the_families_do(device: str) -> None:
    """From one number of tokens to the next: where launches end there is no step down of a fifth, as the rule once had."""
    from dooly.predict._device_latencies import DeviceLatencies
    from dooly.predict._fit_hardware import device_folder

    with device_folder(device) as folder:
        found = DeviceLatencies(folder)._linear_layer(LinearLayer(7168, 18432, "fp8_block"))
    assert isinstance(found, BlockScaledLinear)
    work: Any = SimpleNamespace(sizes=lambda batches: batches)
    batches: Any = np.arange(1.0, 4097)

    def least(latency_ns: np.ndarray) -> float:
        return float((latency_ns[1:] / latency_ns[:-1]).min())

    families = min(least(family.latency_ns(work, batches)) for family in (found.blocks, found.single))
    assert least(found.latency_ns(work, batches)) >= families - 1e-9
