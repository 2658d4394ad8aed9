"""Operations that multiply no matrices, by others of their family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.batch import Batch
from dooly.engines import ServingConfig, find_model
from dooly.predict import load_latency_model
from dooly.predict._family_curve import FamilyCurve, by_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

SIZES = np.array([1e3, 1e4, 1e5, 1e6])


def test_latencies_lie_between_measured_ones() -> None:
    """On the points exact, between them by logarithms, below the first as the first, beyond the last by bandwidth."""
    curve = (SIZES, np.array([2e3, 2e3, 4e3, 3e4]))
    asked = np.array([10.0, 1e3, 10**4.5, 1e5, 1e6, 4e6])
    assert by_bytes(curve, asked) == pytest.approx([2e3, 2e3, 2e3 * 2**0.5, 4e3, 3e4, 1.2e5])


def test_members_tell_together_and_judge_each_other() -> None:
    """The geometric mean of two; each is off by what tells them apart, and one alone by what families were found to be."""
    members = ((SIZES, np.full(4, 1e3)), (SIZES, np.full(4, 4e3)))
    curve = FamilyCurve(members)
    assert curve.at(SIZES) == pytest.approx(np.full(4, 2e3))
    # By the other one, one of 1 us is taken for 4 (300 % off), and one of 4 for 1 (75 %).
    assert curve.relative_error == pytest.approx(np.median([3.0, 0.75]))
    assert FamilyCurve(members[:1]).relative_error == 0.2


def test_a_model_that_was_not_measured_goes_by_its_family() -> None:
    """On an H200 norms, activations and sampling of Qwen2.5 7B go by Llama 3.1 8B's: nothing of it is estimated, nor measured."""
    serving = ServingConfig(max_num_seqs=256, max_num_batched_tokens=2048)
    measured, other = (
        load_latency_model(model=find_model(m), serving=serving, hardware="h200") for m in ("llama-3.1-8b", "qwen2.5-7b")
    )
    batch = Batch((1,) * 64, (500,) * 64)
    assert other.step(batch).provenance["family"] == pytest.approx(1)
    assert measured.step(batch).provenance["measured"] > 0.7
    # Sampling reads logits, in proportion to the vocabulary: 152,064 beside 128,256.
    mine, theirs = (latency.step(batch).breakdown_s["sampler"] for latency in (other, measured))
    assert theirs < mine < 1.25 * theirs
