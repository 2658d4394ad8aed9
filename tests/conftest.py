"""What tests of several rooms share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture(scope="session")
def modules() -> ModuleType:
    """The small plain modules of `plain_modules.py`; torch loads when a test first asks for them."""
    spec = importlib.util.spec_from_file_location("plain_modules", Path(__file__).with_name("plain_modules.py"))
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
