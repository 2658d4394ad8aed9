"""Read CatBoost's own file format without CatBoost, whose loading (pandas with it) takes longer than all that is read.

A `.cbm` file is `CBM1`, a length and a FlatBuffer (https://flatbuffers.dev/internals), whose tables CatBoost publishes as
`catboost/libs/model/flatbuffers/model.fbs` and `features.fbs`. Read here are ensembles of oblivious trees over numbers, one value
a leaf, whose sum is the prediction, as regressors are; anything else is refused, as is a file of another length than it says.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

_MAGIC, _LENGTH, _START = b"CBM1", 4, 8
_CORE_TREES, _CORE_METADATA = 1, 2
_TARGETS, _SPLITS, _SIZES, _FEATURES, _LEAVES, _SCALE, _BIAS, _BIASES = 0, 1, 2, 5, 8, 14, 15, 16
_OTHERS = {6: "one-hot features", 7: "counters", 10: "unsymmetric trees", 13: "estimated features"}
"""Places in the table of trees of what regressors have not."""
_PLACE, _BORDERS, _MISSING = 2, 3, 5
_MISSING_IS_LARGE = 2
"""A missing value is taken to exceed every border, where a comparison says that it exceeds none."""
_DEEPEST = 40
"""Questions of a tree whose leaves no file holds."""
_KEY, _VALUE = 0, 1
_SUMMED = ("RMSE", "MAE", "MAPE", "Quantile", "LogCosh", "Huber", "Expectile")
"""Losses whose models predict the sum of leaves itself, and not its exponent."""


@dataclass(frozen=True, slots=True)
class CbmTrees:
    """What a file holds."""

    feature: Ints
    """Feature of each question, tree by tree, shape (num_questions,)."""
    border: npt.NDArray[np.float32]
    """Value that it must exceed, shape (num_questions,)."""
    depth: Ints
    """Questions of each tree, shape (num_trees,)."""
    leaf: Floats
    """Values of the leaves, tree by tree, shape (sum of 2**depth,)."""
    scale: float
    """Factor on the sum of a row's leaves."""
    bias: float
    """Added to the scaled sum."""
    metadata: Mapping[str, str]
    """What else was written into the file."""


def read_cbm(content: bytes) -> CbmTrees:
    """Return the trees in the content of a `.cbm` file.

    Raises:
        ValueError: It is none, was cut off, or holds another kind of model.
    """
    if content[: len(_MAGIC)] != _MAGIC:
        raise ValueError("not in CatBoost's format")
    try:
        if (length := _unsigned(content, _LENGTH)) != len(content) - _START:
            raise ValueError(f"cut off or altered ({len(content) - _START} bytes where it says {length})")
        core = _Table.root(content[_START:])
        metadata = {pair.text(_KEY): pair.text(_VALUE) for pair in core.tables(_CORE_METADATA)}
        trees = core.table(_CORE_TREES)
        _check_kind(trees, metadata)
        found = _read(trees, metadata)
    except (struct.error, IndexError) as error:
        raise ValueError(f"cut off or altered ({error})") from error
    num_leaves = (1 << np.minimum(found.depth, _DEEPEST)).sum()
    if len(found.leaf) != num_leaves or len(found.feature) != found.depth.sum():
        raise ValueError(f"cut off or altered ({len(found.feature)} questions and {len(found.leaf)} leaves are not of its trees)")
    return found


def _check_kind(trees: _Table, metadata: Mapping[str, str]) -> None:
    """Refuse what is no regressor's."""
    if others := [name for place, name in _OTHERS.items() if trees.count(place)]:
        raise ValueError(f"has {' and '.join(others)}")
    if (targets := trees.number(_TARGETS, "<i4", 1)) != 1:
        raise ValueError(f"has {targets:g} targets")
    if any(feature.number(_MISSING, "<i1", 0) == _MISSING_IS_LARGE for feature in trees.tables(_FEATURES)):
        raise ValueError("takes missing values for the largest")
    loss = json.loads(metadata.get("params", "{}")).get("loss_function", {}).get("type", _SUMMED[0])
    if loss not in _SUMMED:
        raise ValueError(f"was fitted by {loss}, whose predictions are no sums")


def _read(trees: _Table, metadata: Mapping[str, str]) -> CbmTrees:
    features = trees.tables(_FEATURES)
    borders = [feature.array(_BORDERS, "<f4") for feature in features]
    numbers = np.repeat([int(feature.number(_PLACE, "<i4", -1)) for feature in features], [len(found) for found in borders])
    if (numbers < 0).any():
        raise IndexError(f"a feature's place is {numbers.min()}")
    # Unsigned, a place below 0 is beyond the last as well.
    split, biases = trees.array(_SPLITS, "<u4"), trees.array(_BIASES, "<f8")
    return CbmTrees(
        numbers.astype(np.int64)[split],
        np.concatenate([*borders, np.empty(0, dtype=np.float32)])[split],
        trees.array(_SIZES, "<u4").astype(np.int64),
        trees.array(_LEAVES, "<f8").astype(np.float64),
        float(trees.number(_SCALE, "<f8", 1.0)),
        float(biases[0]) if len(biases) else float(trees.number(_BIAS, "<f8", 0.0)),
        metadata,
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """A table in a FlatBuffer: its fields go by their places in the schema, and those that are absent have defaults."""

    buffer: bytes
    start: int

    @classmethod
    def root(cls, buffer: bytes) -> _Table:
        return cls(buffer, _unsigned(buffer, 0))

    def _at(self, place: int) -> int | None:
        """Return where a field lies; None where the table has none."""
        fields = self.start - struct.unpack_from("<i", self.buffer, self.start)[0]
        (length,) = struct.unpack_from("<H", self.buffer, fields)
        offset = 4 + 2 * place
        found = struct.unpack_from("<H", self.buffer, fields + offset)[0] if offset < length else 0
        return self.start + int(found) if found else None

    def number(self, place: int, dtype: str, default: float) -> float:
        """Return a number, as numpy names its type."""
        at = self._at(place)
        return default if at is None else float(np.frombuffer(self.buffer, dtype, 1, at)[0])

    def count(self, place: int) -> int:
        """Return the length of a vector; 0 where there is none."""
        return 0 if (at := self._at(place)) is None else _unsigned(self.buffer, _follow(self.buffer, at))

    def array(self, place: int, dtype: str) -> npt.NDArray[np.generic]:
        """Return a vector of numbers."""
        at = self._at(place)
        start = 0 if at is None else _follow(self.buffer, at) + 4
        return np.frombuffer(self.buffer, dtype, self.count(place), start)

    def table(self, place: int) -> _Table:
        """Return the table in a field."""
        if (at := self._at(place)) is None:
            raise IndexError(f"field {place} is missing")
        return _Table(self.buffer, _follow(self.buffer, at))

    def tables(self, place: int) -> list[_Table]:
        """Return a vector of tables."""
        at = self._at(place)
        first = 0 if at is None else _follow(self.buffer, at) + 4
        return [_Table(self.buffer, _follow(self.buffer, first + 4 * i)) for i in range(self.count(place))]

    def text(self, place: int) -> str:
        """Return a text."""
        return self.array(place, "u1").tobytes().decode()


def _unsigned(buffer: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", buffer, at)[0])


def _follow(buffer: bytes, at: int) -> int:
    """Return what an offset at a place points to."""
    return at + _unsigned(buffer, at)
