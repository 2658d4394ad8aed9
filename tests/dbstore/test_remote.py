"""The backend at an fsspec URL."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import fsspec
import pytest

from dbstore._remote import RemoteFiles
from dbstore.testing import FilesContract

if TYPE_CHECKING:
    from dbstore import Files


class TestRemoteFiles(FilesContract):
    """The contract in fsspec's memory."""

    @pytest.fixture
    def files(self) -> RemoteFiles:
        """Return a backend over a URL of its own."""
        return RemoteFiles(f"memory://{uuid.uuid4().hex}/store")

    def raw_read(self, files: Files, path: str) -> bytes | None:
        """Read the file past the backend."""
        fs, full = fsspec.url_to_fs(files.locate(path))
        return bytes(fs.cat_file(full)) if fs.isfile(full) else None

    def raw_write(self, files: Files, path: str, content: bytes) -> None:
        """Write the file past the backend."""
        fs, full = fsspec.url_to_fs(files.locate(path))
        fs.pipe_file(full, content)
