"""Where a store's bytes lie: the contract of its backends, which `dbstore.testing` checks.

A group exists once its `zarr.json` does. Groups are placed whole and removed whole; nothing in place is ever changed but the
root's own file.
Paths are relative to the store's root, with forward slashes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from dbstore._errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

GROUP = "zarr.json"
"""The file that makes a folder a Zarr group."""


class Files(ABC):
    """Byte storage under one root."""

    can_sweep: ClassVar[bool] = False
    """Whether what a killed writer leaves can be told from what a running one writes, and be removed."""

    @abstractmethod
    def locate(self, path: str) -> str:
        """Return the full path or URL, as messages show it."""

    @abstractmethod
    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of those files that exist."""

    @abstractmethod
    def children(self, path: str) -> tuple[str, ...]:
        """Return the sorted names of the groups right below `path`; empty if there is no such folder."""

    @abstractmethod
    def write_root(self, root_group: bytes) -> None:
        """Make the root if it is missing, and give it this group file in place of another."""

    @abstractmethod
    def place(self, path: str, files: Mapping[str, bytes]) -> None:
        """Make the group `path`; `files` holds its files and its parents' group files. Does nothing if it exists."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove the group `path`; does nothing if it is gone."""

    @abstractmethod
    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of every file, abandoned temporaries left out."""

    def sweep(self) -> None:
        """Remove what killed writers left aside.

        Raises:
            StoreError: The backend cannot, as `can_sweep` says.
        """
        raise StoreError(f"{self.locate('')}: what killed writers leave cannot be told here; remove what verify() lists by hand")
