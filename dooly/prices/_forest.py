"""Ensembles of oblivious trees, cut down to the questions that steps can answer in two ways, and asked of plain amounts.

What is the same at every step, such as an attention's heads, answers its questions once. A question about a logarithm is one
about the amount itself, with another threshold. Either leaves the answers as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    Inverse = Callable[[Floats], Floats]
    """Takes features back to the amounts that they are growing functions of."""

_WITH_CONTEXTS = (0, 1, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Trees of several depths, the shallow ones first, as flat arrays."""

    num_trees: Ints
    """How many trees there are of each depth, from 1."""
    feature: Ints
    """Amount that each question is about, tree after tree and level after level, shape (num_questions,)."""
    threshold: Floats
    """Value that it must exceed for a one, shape (num_questions,)."""
    leaf: Floats
    """Values of the leaves, tree after tree, shape (num_leaves,); the answers, read as bits, are a leaf's number."""
    bias: float
    """Added to the sum of the leaves."""

    @classmethod
    def of(cls, trees: Trees, inverses: Sequence[Inverse | float]) -> Forest:
        """Cut down an ensemble.

        Args:
            trees: The ensemble, which asks about features in single precision.
            inverses: For each feature what takes it back to an amount, or its value where that is the same at every step.
        """
        kept: dict[int, list[tuple[list[int], list[float], Floats]]] = {depth: [] for depth in range(trees.feature.shape[1] + 1)}
        thresholds = _thresholds(trees.feature, trees.border, inverses)
        for row, leaf in enumerate(trees.leaf):
            features, questions, leaves = [], [], leaf * trees.scale
            for level in reversed(range(trees.feature.shape[1])):  # the last level is the highest bit
                number, half = int(trees.feature[row, level]), len(leaves) // 2
                fixed = inverses[number]
                pairs = leaves.reshape(-1, 2, 1 << level)
                if np.isinf(thresholds[row, level]):
                    leaves = pairs[:, 0].reshape(half)
                elif isinstance(fixed, float):
                    leaves = pairs[:, int(np.float32(fixed) > trees.border[row, level])].reshape(half)
                else:
                    features.append(number)
                    questions.append(float(thresholds[row, level]))
            kept[len(features)].append((features[::-1], questions[::-1], leaves))
        ordered = [tree for depth in sorted(kept) if depth for tree in kept[depth]]
        bias = trees.bias + sum(float(leaves[0]) for _, _, leaves in kept[0])
        return cls(
            np.array([len(kept[depth]) for depth in sorted(kept) if depth], np.int64),
            np.array([feature for features, _, _ in ordered for feature in features], np.int64),
            np.array([threshold for _, questions, _ in ordered for threshold in questions], np.float64),
            np.concatenate([np.empty(0), *(leaves for _, _, leaves in ordered)]),
            bias,
        )

    def cuts(self) -> list[Floats]:
        """Return the thresholds, growing, of the features of decodes that grow with contexts: the first, second and fourth."""
        return [np.unique(self.threshold[self.feature == feature]) for feature in _WITH_CONTEXTS]


def _thresholds(feature: Ints, border: npt.NDArray[np.float32], inverses: Sequence[Inverse | float]) -> Floats:
    """Return for each question the amount above which its answer is a one; infinite where none is, shape (num_trees, depth)."""
    with np.errstate(over="ignore"):
        above = np.nextafter(border, np.float32(np.inf)).astype(np.float64)
    # A value that is rounded to single precision exceeds a border where it lies above the middle to the next number.
    middle = (border.astype(np.float64) + above) / 2
    found = np.where(np.isinf(above), np.inf, middle)
    for number, inverse in enumerate(inverses):
        asked = (feature == number) & np.isfinite(found)
        if not isinstance(inverse, float):
            found[asked] = inverse(found[asked])
    return found


if TYPE_CHECKING:
    from typing import Protocol

    class Trees(Protocol):
        """An ensemble of oblivious trees of one depth; its value is the scaled sum of a row's leaves, and the bias."""

        @property
        def feature(self) -> Ints:
            """Feature that each level asks about, shape (num_trees, depth)."""
            ...

        @property
        def border(self) -> npt.NDArray[np.float32]:
            """Value that the feature must exceed for a one, shape (num_trees, depth)."""
            ...

        @property
        def leaf(self) -> Floats:
            """Value of each leaf, shape (num_trees, 2**depth)."""
            ...

        @property
        def scale(self) -> float:
            """Factor on the sum of the leaves."""
            ...

        @property
        def bias(self) -> float:
            """Added to the scaled sum."""
            ...
