"""Check what callers of measuring and predicting give, before any work: each error is one line and names the argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import TYPE_CHECKING

from dbstore import Store
from dooly.errors import InvalidInputError, spell

if TYPE_CHECKING:
    from dooly.engines import ServingConfig
    from dooly.tracing import TracedModel


def check_store(function: str, store: object) -> Store:
    """Check that a store is an open one, and return it.

    Args:
        function: Name of the function that takes it.
        store: What was given as its `store`.

    Raises:
        InvalidInputError: It is something else, such as a path.
    """
    if not isinstance(store, Store):
        raise InvalidInputError(
            f"dooly.{function}: store: {spell(store)} is no open store; give dbstore.Store.open(PATH), with mode 'a' to measure"
        )
    return store


def check_kernels(serving: ServingConfig) -> None:
    """Check that no other kernels are asked for than the engine chooses by itself: environments do not tell them apart.

    Raises:
        InvalidInputError: Some are.
    """
    if serving.moe_backend != "auto":
        raise InvalidInputError(
            "--moe-backend: records are of the kernels that the engine chose; leave it out, or simulate with --hardware"
        )


def given_sizes(table: TracedModel, request_dims: Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """Return the sizes to measure of each request dimension of a plain module, as plain integers.

    Args:
        table: The module's operations, the whole module at the end.
        request_dims: Sizes of each request dimension by its name; any integers, such as NumPy's.

    Raises:
        InvalidInputError: A name is missing or unknown, or a dimension has no sizes, or one that is no integer of at least 1.
    """
    if not isinstance(request_dims, Mapping):
        raise InvalidInputError(
            f"{table.model}: request_dims: {spell(request_dims)} is no mapping; give sizes by name, as {{'seq': (16, 64)}}"
        )
    _check_names(table, request_dims)
    sizes = {name: tuple(found) if isinstance(found, Iterable) else () for name, found in request_dims.items()}
    for name, found in sizes.items():
        if not found or not all(map(_is_size, found)):
            raise InvalidInputError(
                f"{table.model}: request dimension {name!r} needs sizes of at least 1, got {spell(request_dims[name])}; "
                "give a sequence of integers, as (16, 64)"
            )
    return {name: tuple(map(int, found)) for name, found in sizes.items()}


def check_sizes(table: TracedModel, sizes: Mapping[str, object]) -> None:
    """Check that each request dimension of a plain module is given one size.

    Args:
        table: The module's operations, the whole module at the end.
        sizes: One size of each request dimension, by its name.

    Raises:
        InvalidInputError: A name is missing or unknown, or a size is no integer of at least 1.
    """
    _check_names(table, sizes)
    for name, size in sizes.items():
        if not _is_size(size):
            raise InvalidInputError(
                f"{table.model}: request dimension {name!r} needs a size of at least 1, got {spell(size)}; give one integer"
            )


def _check_names(table: TracedModel, given: Iterable[str]) -> None:
    known = table.operations[-1].request_dims
    names = ", ".join(known) or "none"
    if unknown := [name for name in given if name not in known]:
        raise InvalidInputError(f"{table.model}: {spell(unknown[0])} is no request dimension of the module; it has {names}")
    if missing := [name for name in known if name not in set(given)]:
        raise InvalidInputError(f"{table.model}: request dimension {missing[0]!r} is not given; give each of {names}")


def _is_size(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
