"""Stores that commands answer from: what is fitted stays in them, and nothing else does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dbstore import Store, StoreNotFoundError
from dooly.cli._stores import open_to_answer

if TYPE_CHECKING:
    from pathlib import Path


def test_a_store_is_opened_to_keep_fits(db: Path) -> None:
    """Fits may be written; opening alone changes no file."""
    before = {path: path.read_bytes() for path in db.rglob("*") if path.is_file()}
    store = open_to_answer(str(db))
    assert store.writable
    assert {path: path.read_bytes() for path in db.rglob("*") if path.is_file()} == before
    store.write_document("regressors", "r0", {"fit": 1})
    assert Store.open(db).documents("regressors") == ("r0",)


def test_an_earlier_layout_stays_as_it_is(db: Path) -> None:
    """A store that an earlier version shares is read, and not marked as one of this version's."""
    root = db / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["dbstore"]["schema_version"] = 1
    root.write_text(json.dumps(document))
    before = root.read_bytes()
    store = open_to_answer(str(db))
    assert (store.writable, store.is_current, root.read_bytes()) == (False, False, before)
    assert Store.open(db, "a").is_current


def test_no_store_is_made(tmp_path: Path) -> None:
    """Where there is none there is none afterwards."""
    with pytest.raises(StoreNotFoundError):
        open_to_answer(str(tmp_path / "db"))
    assert list(tmp_path.iterdir()) == []
