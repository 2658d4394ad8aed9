"""What commands answer from: a store, which this opens, or a device's shipped measurements."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from dbstore import Store


def check_source(db: str | None, hardware: str | None) -> None:
    """Refuse neither of the two, or both."""
    if (db is None) == (hardware is None):
        raise typer.BadParameter("give either --db PATH, or --hardware NAME of those that `dooly hardware` lists")


def open_to_answer(path: str) -> Store:
    """Open a store that exists; what is fitted to it is kept there, where that may be written, for the next command.

    A store of an earlier layout is only read: whoever answers from it does not change what version it is of.
    """
    from dbstore import Store, StoreError

    store = Store.open(path)
    if store.is_current:
        with suppress(StoreError):
            return Store.open(path, "a")
    return store
