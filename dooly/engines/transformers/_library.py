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
    """Import Transformers, and keep it silent and from the network within the scope; `HF_HUB_OFFLINE`, where it is set, decides.

    Both libraries are imported with the caller's environment, of which they keep what they find, and are left as they were.

    Raises:
        EngineError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
            from huggingface_hub import constants
    except ModuleNotFoundError as error:
        raise EngineError(
            f"engine transformers: {error.name} is not installed; install it with `pip install transformers`"
        ) from error
    verbosity, offline = transformers.logging.get_verbosity(), constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or "HF_HUB_OFFLINE" not in os.environ
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    finally:
        transformers.logging.set_verbosity(verbosity)
        constants.HF_HUB_OFFLINE = offline


def variables() -> dict[str, str | None]:
    """Return the variables of this process that change how Transformers runs: none beside torch's own."""
    return {}
