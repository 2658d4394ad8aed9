"""What commands answer from: a store, which this opens, or a device's shipped measurements."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

from dooly.engines import serving_as_asked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbstore import Store
    from dooly.engines import ModelSource, ServingConfig


def check_source(db: str | None, hardware: str | None) -> None:
    """Refuse neither of the two, or both."""
    if (db is None) == (hardware is None):
        raise typer.BadParameter("give either --db PATH, or --hardware NAME of those that `dooly hardware` lists")


def serving_for(model: ModelSource, hardware: str | None, settings: Mapping[str, Any]) -> ServingConfig:
    """Return the settings that were given, completed as the engine starts on a device, or as a store is asked."""
    from dooly.predict import default_serving

    return serving_as_asked(model, settings) if hardware is None else default_serving(model, hardware, **settings)


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
