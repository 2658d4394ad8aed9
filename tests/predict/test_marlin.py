"""Experts in Marlin's blocks of rows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.errors import InvalidInputError
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._fit_hardware import device_folder
from dooly.predict._kinds import Experts
from dooly.predict._marlin import MarlinCosts, block_rows, dealt_blocks, expected_blocks, fit_marlin

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SHAPE = Experts(256, 128, 4, 128, 128, "w4a16_mxfp4")
TOKENS = np.array([1.0, 32, 64, 256, 512, 4096])


def test_blocks_grow_with_the_choices_of_an_expert() -> None:
    """At 2 a block of 8 is filled to a quarter; at 8 it would be full, so 16 it is; 128 take two of the largest."""
    assert block_rows(SHAPE, TOKENS).tolist() == [8, 8, 8, 16, 32, 64]
    # A rank of a quarter of the experts chooses as if all tokens were its own.
    assert block_rows(replace(SHAPE, num_local_experts=32), TOKENS).tolist() == [8, 8, 16, 48, 64, 64]


def test_dealt_out_in_turn_blocks_are_as_many_as_experts_reached() -> None:
    """Four a token until all are reached; then more only where an expert's rows are more than a block."""
    assert dealt_blocks(SHAPE, TOKENS).tolist() == [4, 128, 128, 128, 128, 256]


def test_blocks_by_chance_are_those_of_a_simulation() -> None:
    """Tokens that choose four different experts each, drawn many times."""
    rng = np.random.default_rng(0)
    for m in (16, 256):
        rows = block_rows(SHAPE, np.array([float(m)]))[0]
        drawn = [np.bincount(np.concatenate([rng.permutation(128)[:4] for _ in range(m)]), minlength=128) for _ in range(100)]
        mean = np.mean([np.ceil(counts / rows).sum() for counts in drawn])
        assert expected_blocks(SHAPE, np.array([float(m)]))[0] == pytest.approx(mean, rel=0.01)


def _made_up(shape: Experts) -> tuple[Experts, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return rows of a device whose costs are known: launches, and a byte's worth of weights by rows and element type."""
    m = np.array([1.0, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096])
    return shape, m, COSTS.predict_ns(shape, m, dealt_blocks(shape, m))


COSTS = MarlinCosts(
    20_000, 50, 10_000, 100, 1e-4, 1e-3, {"w4a16": (2e-4, 3e-4, 4e-4, 5e-4, 6e-4), "w4a16_mxfp4": (3e-4,) * 5}, 0.0, 0.0, 2, 0
)
LAYOUTS = [
    Experts(hidden, 1024 // tensor, top_k, experts, experts // parts, dtype)
    for hidden, top_k, experts, dtype in ((4096, 4, 128, "w4a16"), (2048, 8, 384, "w4a16_mxfp4"))
    for tensor, parts in ((1, 1), (2, 1), (4, 1), (1, 2), (1, 8))
]


def test_costs_are_found_again() -> None:
    """Two models tell them all; a third in another number of experts is predicted, and each alone says little of the other."""
    found = fit_marlin([_made_up(shape) for shape in LAYOUTS])
    assert found.num_points == 100
    assert found.weight_byte_ns["w4a16"] == pytest.approx(COSTS.weight_byte_ns["w4a16"], rel=1e-3)
    assert (found.launch_ns, found.expert_ns) == pytest.approx((20_000, 50), rel=1e-3)
    _, m, latency_ns = _made_up(SHAPE)
    assert found.predict_ns(SHAPE, m, dealt_blocks(SHAPE, m)) == pytest.approx(latency_ns, rel=1e-3)
    assert 0.05 < found.relative_error < 0.5
    assert found.relative_error < found.relative_error_p90


def test_one_model_alone_is_an_estimate() -> None:
    """Nothing judges it."""
    assert fit_marlin([_made_up(shape) for shape in LAYOUTS[:5]]).relative_error == 0.5


def test_written_costs_are_read_again(tmp_path: Path) -> None:
    """And a file that holds none is named."""
    file = tmp_path / "experts.json"
    COSTS.write(file)
    again = MarlinCosts.read(file)
    _, m, latency_ns = _made_up(SHAPE)
    assert again.predict_ns(SHAPE, m, dealt_blocks(SHAPE, m)).tolist() == latency_ns.tolist()
    file.write_text("{}")
    with pytest.raises(InvalidInputError, match=r"experts\.json: holds no costs of experts"):
        MarlinCosts.read(file)


def test_weights_that_no_table_has_are_of_no_family(tmp_path: Path) -> None:
    """A device may have been measured over weights of one element type alone: those of another are missing, as all else is."""
    with device_folder("h200") as folder:
        shutil.copy(folder / "hardware.json", tmp_path)
    replace(COSTS, weight_byte_ns={"w4a16": (3e-4,) * 5}).write(tmp_path / "experts-w4a16.json")
    device = DeviceLatencies(tmp_path)
    assert device._experts(SHAPE, ()) is None
    assert device._experts(replace(SHAPE, dtype="w4a16"), ()) is not None
