"""Which storage a path or a URL gets."""

from __future__ import annotations

import os

from dbstore._files import Files


def open_files(place: str | os.PathLike[str] | Files) -> Files:
    """Return the storage at a local path, a `file://` URL or any other fsspec URL; a storage as it is."""
    from dbstore._local import LocalFiles

    if isinstance(place, Files):
        return place
    path_or_url = os.fspath(place)
    scheme, separator, rest = path_or_url.partition("://")
    if not separator or scheme == "file":
        return LocalFiles(rest if separator else path_or_url)
    from dbstore._remote import RemoteFiles

    return RemoteFiles(path_or_url)
