"""Which storage a path or a URL gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbstore._files import Files


def open_files(path_or_url: str) -> Files:
    """Return the storage at a local path, a `file://` URL or any other fsspec URL."""
    from dbstore._local import LocalFiles

    scheme, separator, rest = path_or_url.partition("://")
    if not separator or scheme == "file":
        return LocalFiles(rest if separator else path_or_url)
    from dbstore._remote import RemoteFiles

    return RemoteFiles(path_or_url)
