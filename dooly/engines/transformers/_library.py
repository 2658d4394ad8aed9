"""Import Transformers without chatter and without a network, and keep it from speaking."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dooly.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


@contextmanager
def quiet_transformers() -> Iterator[ModuleType]:
    """Import Transformers, and keep it from speaking within the scope.

    Raises:
        EngineError: It is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
    except ModuleNotFoundError as error:
        raise EngineError(
            f"engine transformers: {error.name} is not installed; install it with `pip install transformers`"
        ) from error
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    finally:
        transformers.logging.set_verbosity(verbosity)


def variables() -> dict[str, str | None]:
    """Return the variables of this process that change how Transformers runs: none beside torch's own."""
    return {}
