"""Merging: the same whatever the order, and however often."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import fsspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dbstore import Record, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbstore import Environment

CONTENTS = st.lists(st.sets(st.integers(0, 7), max_size=5), min_size=1, max_size=4)
"""Of each store, the points it has records of."""


def files_of(store: Store) -> dict[str, bytes]:
    """Return every file of a store in memory whose records are compacted."""
    for key in list(store.keys()):
        store.compact(*key)
    fs, root = fsspec.url_to_fs(store.info().place)
    return {path.removeprefix(root): fs.cat_file(path) for path in fs.find(root)}


@settings(max_examples=25)
@given(contents=CONTENTS, data=st.data())
def test_order_and_repetition_do_not_matter(
    contents: Sequence[set[int]], data: st.DataObject, environment: Environment, make_record: Callable[..., Record]
) -> None:
    """Stores merged in any order, any of them several times, one after the other or in pairs first, give the same files."""
    base = f"memory://{uuid.uuid4().hex}"
    stores = []
    for number, points in enumerate(contents):
        store = Store.open(f"{base}/{number}", "a")
        store.write_document("environments", environment.digest, environment.to_json())
        store.write_document("operations", f"o{number % 2}", {"name": number % 2})
        for point in points:
            store.write(make_record(point, signature=f"s{point % 2}"))
        stores.append(store)
    order = data.draw(st.permutations(list(range(len(stores))) * 2))
    plain, shuffled, paired = (Store.open(f"{base}/{name}", "a") for name in ("plain", "shuffled", "paired"))
    for store in stores:
        plain.merge(store)
    for number in order:
        shuffled.merge(stores[number])
    for first, second in zip(stores, stores[1:] or stores, strict=False):
        pair = Store.open(f"{base}/{uuid.uuid4().hex}", "a")
        pair.merge(second)
        pair.merge(first)
        paired.merge(pair)
    assert [plain.merge(other) for other in (shuffled, paired, plain, *stores)] == [0] * (3 + len(stores))
    assert files_of(plain) == files_of(shuffled) == files_of(paired)
    assert plain.verify() == ()
    fs, root = fsspec.url_to_fs(base)
    fs.rm(root, recursive=True)
