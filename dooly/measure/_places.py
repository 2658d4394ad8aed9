"""The places of a sweep: which point each operation has at each, which of them can be run, and what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.measure._place_costs import PlaceCosts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from dbstore import JsonObject
    from dooly.catalog import Key


class Places:
    """What is run to measure, by number: batches of an engine, or forwards of a plain module."""

    def __init__(self, points: Sequence[Mapping[Key, JsonObject]], keys: Iterable[Key], sizes: npt.NDArray[np.float64]) -> None:
        """Take the places.

        Args:
            points: The point of each operation at each place.
            keys: The operations.
            sizes: Sizes of each place that its cost goes by, shape (num_places, num_sizes).
        """
        self.points = points
        self.costs = PlaceCosts(sizes)
        self.closed: set[int] = set()
        """Those that cannot be run."""
        self.of: dict[Key, dict[JsonObject, set[int]]] = {key: {} for key in keys}
        """Those that have a point of an operation, open or not."""
        for place, here in enumerate(points):
            for key, found in self.of.items():
                found.setdefault(here[key], set()).add(place)

    def open_at(self, key: Key, point: JsonObject) -> list[int]:
        """Return the open places that have a point of an operation."""
        return sorted(self.of[key][point] - self.closed)

    def have_lost(self, signature: str, point: JsonObject) -> bool:
        """Tell whether no open place has a point of a signature, whichever operation has it there."""
        return all(found.get(point, set()) <= self.closed for key, found in self.of.items() if key[0] == signature)

    def points_at(self, place: int, keys: Collection[Key]) -> set[tuple[str, JsonObject]]:
        """Return the points of operations at a place, with their signatures: one may have several there."""
        return {(key[0], self.points[place][key]) for key in keys}
