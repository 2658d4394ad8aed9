"""Ensembles cut down to what steps decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dooly.prices import Forest

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


class Trees(NamedTuple):
    """An ensemble as CatBoost keeps it."""

    feature: npt.NDArray[np.int64]
    border: npt.NDArray[np.float32]
    leaf: Floats
    scale: float
    bias: float

    def value(self, features: Floats) -> float:
        """Ask every question, in single precision."""
        answers = features.astype(np.float32)[self.feature] > self.border
        numbers = (answers << np.arange(self.feature.shape[1])).sum(axis=1)
        return float(self.scale * self.leaf[np.arange(len(self.leaf)), numbers].sum() + self.bias)


def value(forest: Forest, amounts: Floats) -> float:
    """Ask what is left of the questions, tree after tree."""
    total, question, place = forest.bias, 0, 0
    for below, number in enumerate(forest.num_trees.tolist()):
        for _ in range(number):
            asked = slice(question, question + below + 1)
            answers = amounts[forest.feature[asked]] > forest.threshold[asked]
            total += forest.leaf[place + int((answers << np.arange(below + 1)).sum())]
            question, place = question + below + 1, place + (2 << below)
    assert (question, place) == (len(forest.feature), len(forest.leaf))
    return float(total)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 6))
def test_a_forest_answers_as_its_ensemble(seed: int, num_trees: int, depth: int) -> None:
    """Logarithms of two amounts, one of an amount and one, a ratio and a fixed feature; some trees are shallower than others."""
    rng = np.random.default_rng(seed)
    border = rng.uniform(0, 6, (num_trees, depth)).astype(np.float32)
    border[rng.random((num_trees, depth)) < 0.2] = np.finfo(np.float32).max
    trees = Trees(rng.integers(0, 5, (num_trees, depth)), border, rng.normal(size=(num_trees, 1 << depth)), 1.5, -0.25)
    fixed = float(rng.uniform(0, 6))
    forest = Forest.of(trees, (np.exp, np.exp, np.expm1, np.asarray, fixed))
    assert 4 not in forest.feature
    for _ in range(20):
        amounts = np.floor(rng.uniform(1, 400, 4))
        features = np.array([*np.log(amounts[:2]), np.log1p(amounts[2]), amounts[3], fixed])
        assert value(forest, amounts) == pytest.approx(trees.value(features), rel=1e-12, abs=1e-12)


def test_a_feature_exactly_at_a_border_does_not_exceed_it() -> None:
    """So it is in single precision: a number just above the border counts as the border."""
    trees = Trees(np.array([[0]]), np.array([[3.0]], np.float32), np.array([[1.0, 2.0]]), 1.0, 0.0)
    forest = Forest.of(trees, (np.asarray,))
    assert [value(forest, np.array([x])) for x in (3.0, 3.0000001, 3.0000005)] == [1.0, 1.0, 2.0]
