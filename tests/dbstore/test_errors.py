"""Errors: one root, built-in bases, clean lines."""

from __future__ import annotations

import pickle

import pytest

import dbstore
from dbstore import RecordNotFoundError, StoreError, StoreNotFoundError

ERRORS = [value for value in vars(dbstore).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", ERRORS)
def test_one_root_and_a_clean_line(error: type[StoreError]) -> None:
    """Every error is a StoreError that shows its message as given, also after pickling."""
    assert issubclass(error, StoreError)
    assert str(error("a 'quoted' line")) == "a 'quoted' line"
    assert str(pickle.loads(pickle.dumps(error("line")))) == "line"  # noqa: S301  (our own bytes)


def test_built_in_bases() -> None:
    """Callers may catch what they would expect of a mapping and of a file."""
    assert issubclass(RecordNotFoundError, KeyError)
    assert issubclass(StoreNotFoundError, FileNotFoundError)
