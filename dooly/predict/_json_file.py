"""Facts in a JSON file of a device's folder, which anybody may have written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Made = TypeVar("Made")


def read_facts(file: Path, make: Callable[[Mapping[str, Any]], Made], what: str) -> Made:
    """Return what is made of the facts in a file.

    Args:
        file: Holds one JSON object.
        make: Makes it; raises TypeError or ValueError for facts that it cannot take.
        what: What the file should hold, for the message.

    Raises:
        InvalidInputError: The file holds no such facts, or cannot be read.
    """
    try:
        return make({**json.loads(file.read_text(encoding="utf-8"))})
    except (OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InvalidInputError(f"{file}: holds no {what} ({reason}); build it again") from error
