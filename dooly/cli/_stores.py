"""How commands open the store that they answer from."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbstore import Store


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
