"""A store at an fsspec URL, such as an object store, which renames nothing atomically.

What holds there: each file is written whole, and a group's own `zarr.json` last, so readers see a whole group or none, and
writers need no lock. A killed writer loses at most the point in flight, but may leave a chunk without its group: it takes space,
no reader looks at it, `verify()` lists it, and nothing removes it by itself, since its owner cannot be asked. `verify()` beside a
running writer may list the group in flight. The file system must list what it has just written, as S3, GCS and Azure do.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from dbstore._errors import StoreError
from dbstore._files import GROUP, Files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class RemoteFiles(Files):
    """Byte storage at an fsspec URL."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self._url = url.rstrip("/")
        try:
            # A cached listing would hide what other writers place.
            self._fs, root = url_to_fs(self._url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{url}: fsspec cannot open this URL ({error}); install its file system or give a path") from error
        self._root = str(root).rstrip("/")

    def locate(self, path: str) -> str:
        """Return the URL."""
        return f"{self._url}/{path}" if path else self._url

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of those files that exist, fetched concurrently where the file system can."""
        full = {f"{self._root}/{path}": path for path in paths}
        if not full:
            return {}
        found = {}
        for name, content in self._fs.cat(list(full), recursive=False, on_error="return").items():
            if isinstance(content, bytes):
                found[full[name]] = content
            elif not isinstance(content, FileNotFoundError):
                raise StoreError(f"{self.locate(full[name])}: cannot be read ({content}); check the access") from content
        return found

    def children(self, path: str) -> tuple[str, ...]:
        """Return the sorted names of the groups right below `path`."""
        return tuple(sorted(str(found).split("/")[-2] for found in self._fs.glob(f"{self._root}/{path}/*/{GROUP}")))

    def write_root(self, root_group: bytes) -> None:
        """Write the root's group file."""
        self._fs.makedirs(self._root, exist_ok=True)
        self._fs.pipe_file(f"{self._root}/{GROUP}", root_group)

    def place(self, path: str, files: Mapping[str, bytes]) -> None:
        """Write the group's files, its own group file last."""
        last = f"{path}/{GROUP}"
        if self._fs.exists(f"{self._root}/{last}"):
            return
        for folder in sorted({name.rpartition("/")[0] for name in files}):
            self._fs.makedirs(f"{self._root}/{folder}", exist_ok=True)
        self._fs.pipe({f"{self._root}/{name}": content for name, content in files.items() if name not in (GROUP, last)})
        self._fs.pipe_file(f"{self._root}/{last}", files[last])

    def remove(self, path: str) -> None:
        """Delete the group's own file first, so that no reader sees half of it."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{path}/{GROUP}")
        with suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{path}", recursive=True)

    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of every file."""
        for name, entry in self._fs.find(self._root, detail=True).items():
            yield str(name)[len(self._root) + 1 :], int(entry["size"])
