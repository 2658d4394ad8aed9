"""What an export wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote, and what it could not say."""

    files: tuple[Path, ...]
    """The files."""
    num_rows: int
    """Rows, or numbers, in them."""
    notes: tuple[str, ...]
    """What the tool does not get to know."""


def made_folder(folder: Path) -> Path:
    """Return a folder, made where it was missing.

    Raises:
        InvalidInputError: It cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"--output: {folder} cannot be made ({error.strerror}); give another folder") from error
    return folder


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, its folder as well where that was missing.

    Raises:
        InvalidInputError: It cannot be written.
    """
    made_folder(path.parent)
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InvalidInputError(f"--output: {path} cannot be written ({error.strerror}); give another path") from error
