"""Where a store's bytes lie: the contract that a local folder and an fsspec URL both meet.

A group exists once its `zarr.json` does. Groups are placed whole and removed whole; nothing in place is ever changed but the
root's own file.
Paths are relative to the store's root, with forward slashes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

GROUP = "zarr.json"
"""The file that makes a folder a Zarr group."""


class Files(Protocol):
    """Byte storage under one root."""

    def locate(self, path: str) -> str:
        """Return the full path or URL, as messages show it."""
        ...

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of those files that exist."""
        ...

    def children(self, path: str) -> tuple[str, ...]:
        """Return the sorted names of the groups right below `path`; empty if there is no such folder."""
        ...

    def write_root(self, root_group: bytes) -> None:
        """Make the root if it is missing, and give it this group file in place of another."""
        ...

    def place(self, path: str, files: Mapping[str, bytes]) -> None:
        """Make the group `path`; `files` holds its files and its parents' group files. Does nothing if it exists."""
        ...

    def remove(self, path: str) -> None:
        """Remove the group `path`; does nothing if it is gone."""
        ...

    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of every file, abandoned temporaries left out."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers left aside."""
        ...
