"""Sizes of element types: one table for all who count bytes."""

from __future__ import annotations

import pytest

from dooly.dtypes import _ITEM_BYTES, cache_item_bytes, item_bytes
from dooly.errors import UnsupportedModelError


def test_sizes_are_torchs_own() -> None:
    """A type that goes by torch's name takes the bytes that torch says."""
    import torch

    known = {name: getattr(torch, name) for name in _ITEM_BYTES if hasattr(torch, name)}
    assert {name: item_bytes(name) for name in known} == {name: dtype.itemsize for name, dtype in known.items()}
    assert {"bool", "int64", "bfloat16", "float32", "float8_e4m3fn"} <= known.keys()


@pytest.mark.parametrize(("kind", "size"), [("auto", 4), ("bfloat16", 2), ("fp8", 1), ("fp8_e5m2", 1)])
def test_a_cache_is_of_its_own_type_or_the_models(kind: str, size: int) -> None:
    """An engine calls "as the model" by the name `auto`."""
    assert cache_item_bytes(kind, "float32") == size


@pytest.mark.parametrize("kind", ["nvfp4", "int4_per_token_head", "unheard of"])
def test_unknown_types_are_refused(kind: str) -> None:
    """No size is guessed: the message names the type, in one line."""
    for count in (lambda: item_bytes(kind), lambda: cache_item_bytes(kind, "float32")):
        with pytest.raises(UnsupportedModelError, match=rf"^element type {kind}: how many bytes .* not known; choose another.*$"):
            count()
