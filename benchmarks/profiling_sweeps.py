"""The sweeps of models' operations as a table of measurements has them, for `profiling_cost.py` to draw from.

Operations are those that aiconfigurator's tables time in bfloat16: products, attention (decodes and prefills, with and without
a window) and experts. A configuration that the tables lack is stood in for by the nearest one that stands for no other, so that
what two models share, and what they do not, stays as it is. What moves bytes alone, and multi-head latent attention, are in no
table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.imports import family_points
from dooly.predict import Hardware
from dooly.predict._kinds import AttentionShape, Experts, LinearLayer, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Configuration = tuple[float, ...]

HELD_OUT = 0.2
"""Share of each operation's points that nobody ever draws, and that judge everyone."""
UNLIMITED = float(1 << 20)
"""A window longer than any context."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which of a family's features say what."""

    sizes: tuple[int, ...]
    """Sizes of the batch: what a grid without a family interpolates over."""
    process: tuple[int, ...]
    """Coordinates of the family's process: sizes, how full tiles are, configuration."""
    configuration: tuple[int, ...]
    """What tells operations apart."""


COLUMNS = {
    "linear": Columns((0,), (0, 1, 2, 9, 13, 17), (1, 2)),
    "decodes": Columns((2, 3), (2, 3, 7, 8, 9), (7, 8, 9)),
    "prefills": Columns((2, 3), (2, 3, 6, 7, 8, 9), (7, 8, 9)),
    "experts": Columns((0,), (0, -5, -4, -3, -2, -1), (-5, -4, -3, -2, -1)),
}
"""Of `dooly.predict._family_features`, by family; windows are a column more behind those of attention."""
WINDOWED = 0.3
"""Coordinate of attention under a window beside 0 of any other: about as far as a third more heads."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """All points of one operation in a table."""

    family: str
    """Its family."""
    sizes: Floats
    """Logarithms of the batch's sizes, shape (num_points, num_sizes)."""
    coordinates: Floats
    """Coordinates of the family's process, shape (num_points, num_coordinates)."""
    roofline_ns: Floats
    """Least time that the device could take, shape (num_points,)."""
    latency_ns: Floats
    """What was measured, shape (num_points,)."""
    held: npt.NDArray[np.bool_]
    """Points that nobody draws, shape (num_points,)."""

    @property
    def drawable(self) -> npt.NDArray[np.int64]:
        """Places of the points that may be drawn."""
        return np.flatnonzero(~self.held)


class Table:
    """Sweeps of a system's tables, and which of them stands for which operation."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        """Read a folder of aiconfigurator's tables; `seed` draws what is held out."""
        hardware = Hardware("", "", 1, 4.8e12, 989e12, 132, 1.0, 0.0, "", "")
        self._sweeps: dict[str, dict[Configuration, Sweep]] = {name: {} for name in COLUMNS}
        self._stands_for: dict[tuple[str, Configuration], Configuration] = {}
        self.num_stand_ins: dict[str, int] = dict.fromkeys(COLUMNS, 0)
        rng = np.random.default_rng(seed)
        for name, (roofline, features, latency_ns, _) in family_points(folder, hardware).items():
            family, _, suffix = name.partition("-")
            if suffix in {"", "window"}:
                for configuration, sweep in _sweeps(family, suffix == "window", roofline, features, latency_ns, rng):
                    self._sweeps[family][configuration] = sweep

    def of_model(self, name: str) -> dict[tuple[str, Configuration], Sweep]:
        """Return the sweeps of the operations that one rank of a model runs, each once."""
        found = {}
        for operation in operation_table(find_model(name), ServingConfig()).operations:
            for family, wanted in _wanted(None if operation.stage == "engine" else kind_of(operation)):
                configuration = self._nearest(family, wanted)
                found[family, configuration] = self._sweeps[family][configuration]
        return found

    def _nearest(self, family: str, wanted: Configuration) -> Configuration:
        """Return the configuration that stands for a wanted one: itself, or the nearest that stands for no other."""
        if (family, wanted) not in self._stands_for:
            taken = {own for (other, _), own in self._stands_for.items() if other == family}
            free = [own for own in self._sweeps[family] if own not in taken]
            distances = np.abs(np.log(np.array(free) / np.array(wanted))).sum(axis=1)
            self._stands_for[family, wanted] = free[int(np.argmin(distances))]
            self.num_stand_ins[family] += free[int(np.argmin(distances))] != wanted
        return self._stands_for[family, wanted]


def _wanted(kind: object) -> Iterator[tuple[str, Configuration]]:
    """Yield the families that price a kind of operation, with the configuration in each."""
    if isinstance(kind, LinearLayer):
        yield "linear", (float(kind.n), float(kind.k))
    elif isinstance(kind, AttentionShape):
        shape = (kind.num_heads, kind.num_kv_heads, kind.head_size, kind.window or UNLIMITED)
        yield from ((family, tuple(map(float, shape))) for family in ("decodes", "prefills"))
    elif isinstance(kind, Experts):
        sizes = (kind.hidden_size, kind.intermediate_size, kind.top_k, kind.num_experts, kind.num_local_experts)
        yield "experts", tuple(map(float, sizes))


def _sweeps(  # noqa: PLR0913, PLR0917 - a family's points, as `family_points` gives them
    family: str,
    windowed: bool,  # noqa: FBT001 - as above
    roofline_ns: Floats,
    features: Floats,
    latency_ns: Floats,
    rng: np.random.Generator,
) -> Iterator[tuple[Configuration, Sweep]]:
    """Yield the sweeps of a family by configuration."""
    columns = COLUMNS[family]
    telling = np.round(np.exp(features[:, [*columns.configuration, *((-1,) if windowed else ())]]), 6)
    for own in np.unique(telling, axis=0):
        (places,) = np.nonzero((telling == own).all(axis=1))
        # Of a size that was measured twice, the first counts.
        _, first = np.unique(features[places][:, list(columns.sizes)], axis=0, return_index=True)
        places = places[np.sort(first)]
        held = np.zeros(len(places), dtype=bool)
        held[rng.choice(len(places), int(HELD_OUT * len(places)), replace=False)] = True
        coordinates = features[places][:, list(columns.process)]
        attention = family in {"decodes", "prefills"}
        if attention:
            coordinates = np.column_stack([coordinates, np.full(len(places), WINDOWED if windowed else 0.0)])
        configuration = tuple(own.tolist()) + ((UNLIMITED,) if attention and not windowed else ())
        sizes = features[places][:, list(columns.sizes)]
        yield configuration, Sweep(family, sizes, coordinates, roofline_ns[places], latency_ns[places], held)


def check_models(names: Sequence[str]) -> None:
    """Look the models up, so that a wrong name ends the run before the work."""
    for name in names:
        find_model(name)
