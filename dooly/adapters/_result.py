"""What an export wrote."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.predict import LatencyModel


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote, and what it could not say."""

    files: tuple[Path, ...]
    """The files."""
    num_rows: int
    """Rows, or numbers, in them."""
    notes: tuple[str, ...]
    """What the tool does not get to know."""


def limit_notes(latency: LatencyModel) -> tuple[str, ...]:
    """Return that times are those of short bursts, where a device's power limit is known that makes them longer."""
    if (cap := latency.power_cap) is None:
        return ()
    burst, share = f"{cap.burst_ns / 1e6:g} ms", f"{cap.slowdown_permille / 10:g} %"
    return (f"times are those of short bursts: by the device's power limit products take {share} longer after {burst} of them",)


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
    """Write a file, its folder as well where that was missing; who ends the process meanwhile leaves what was there.

    Raises:
        InvalidInputError: It cannot be written.
    """
    made_folder(path.parent)
    is_plain = path.is_file() or not path.exists()  # a pipe, such as /dev/stdout, is written as it stands
    target = path.resolve() if is_plain else path
    aside = target.with_name(f".dooly-{os.getpid()}") if is_plain else path
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        if target.is_file():
            shutil.copymode(target, aside)
        if is_plain:
            aside.replace(target)
    except OSError as error:
        raise InvalidInputError(f"--output: {path} cannot be written ({error.strerror}); give another path") from error
    finally:
        if is_plain:
            aside.unlink(missing_ok=True)
