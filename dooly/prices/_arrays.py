"""Price sheets and steps as arrays of records, which compiled loops read by the names of their fields."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.prices._forest import Forest

    Floats = npt.NDArray[np.float64]
    Records = np.recarray[Any, Any]

NUM_FEATURES = 13
"""Of the forest that has most."""
MAX_DEPTH = 16
"""Questions of the deepest tree: CatBoost's own limit."""
MAX_CUTS = 1023
"""Most thresholds of one amount with which values are looked up, rather than worked out again."""
MAX_FORESTS = 64
"""Most forests of which they are."""


def record(**names: str) -> np.dtype[np.void]:
    """Return the type of a record: names of fields by their types, apart by spaces."""
    return np.dtype([(name, kind) for kind, group in names.items() for name in group.split()])


def sources(module: str) -> str:
    """Return a field's name that changes with the compiled code beside a module, given its `__file__`.

    numba keeps compiled functions on disk until their own file changes, be the functions that they call others by then. For
    arguments of another type it compiles anew.
    """
    texts = (path.read_bytes() for path in sorted(Path(module).parent.glob("_compiled*.py")))
    return f"sources_{zlib.crc32(b''.join(texts)):08x}"


AMOUNTS = record(
    f8="decode_kv_tokens prefill_pairs prefill_kv_tokens prefill_tokens num_decodes num_prefills longest decode_longest"
    " decode_kv_squares cached_tokens num_new_requests"
)
"""What a step's price depends on: sums over its requests, and the most of one. Decodes are requests of one token."""
NUMBERS = record(
    f8="step_ns token_ns request_ns new_request_ns cached_token_ns pair_ns"
    f" max_num_tokens max_num_reqs max_context decode_reach pairs_reach tokens_reach {sources(__file__)}"
)
"""A sheet's own numbers."""
ATTENTION = record(
    i8="num_runs source forest num_forests",
    f8="per_pair per_token num_heads num_kv_heads num_sms flops_per_s bytes_per_s least_ns shared_ns gap_ns",
)
"""`AttentionPrice`, with FLOPs of a query-key pair, which are bytes of a query too, and bytes of a cached token."""
FOREST = np.dtype([("question", "i8"), ("leaf", "i8"), ("bias", "f8"), ("num_trees", "i8", (MAX_DEPTH,)), ("cuts", "i8", (4,))])
"""Where a forest's questions and leaves begin, the rest of `Forest`, and where its three rows of cuts begin and the last ends."""
QUESTION = record(i8="feature", f8="threshold")
"""As in `Forest`."""


class SheetArrays(NamedTuple):
    """A price sheet as compiled loops take it; forests lie one behind the other."""

    numbers: Any
    """One record."""
    tokens_ns: Floats
    """Shape (num_sources, max_num_tokens + 1)."""
    requests_ns: Floats
    """Shape (num_sources, max_num_reqs + 1)."""
    attention: Records
    """Shape (num_attention,)."""
    forests: Records
    """Shape (num_forests,)."""
    questions: Records
    """Of all forests, shape (num_questions,)."""
    leaf: Floats
    """Of all forests, shape (num_leaves,)."""
    cuts: Floats
    """Thresholds of forests over decodes by amount, growing, shape (num_cuts,)."""


class Scratch(NamedTuple):
    """Room to price in, and values of forests by the answers that led to them."""

    features: Floats
    """Shape (13,)."""
    keys: npt.NDArray[np.int64]
    """Answers, shape (num_slots,), a power of two."""
    values: Floats
    """Values, shape (num_slots,)."""


def new_scratch(num_slots: int = 64) -> Scratch:
    """Return room to price in, which threads must not share, with so many slots for values, a power of two."""
    return Scratch(np.zeros(NUM_FEATURES), np.full(num_slots, -1, np.int64), np.zeros(num_slots))


def new_records(number: int, kind: np.dtype[np.void]) -> Records:
    """Return so many records of zeros."""
    return np.zeros(number, kind).view(np.recarray)


def sheet_arrays(
    numbers: tuple[float, ...],
    tokens_ns: Floats,
    requests_ns: Floats,
    attention: Sequence[tuple[float, ...]],
    forests: Sequence[tuple[Forest, bool]],
) -> SheetArrays:
    """Return a sheet's arrays.

    Args:
        numbers: Its own.
        tokens_ns: Its table by tokens.
        requests_ns: Its table by requests.
        attention: A record of each.
        forests: The forests, and whether each is one over decodes.
    """
    looked_up = len(forests) <= MAX_FORESTS
    rows = new_records(len(forests), FOREST)
    cuts: list[Floats] = []
    question = leaf = cut = 0
    for row, (forest, is_over_decodes) in zip(rows, forests, strict=True):
        row.question, row.leaf, row.bias = question, leaf, forest.bias
        row.num_trees[: len(forest.num_trees)] = forest.num_trees
        question, leaf = question + len(forest.feature), leaf + len(forest.leaf)
        found = forest.cuts() if is_over_decodes and looked_up else []
        if max(map(len, found), default=0) > MAX_CUTS:
            found = []
        row.cuts[:] = cut
        row.cuts[1 : 1 + len(found)] = cut + np.cumsum([len(each) for each in found], dtype=np.int64)
        cut = int(row.cuts.max())
        cuts += found
    questions = new_records(question, QUESTION)
    for name in QUESTION.names or ():
        questions[name] = np.concatenate([np.empty(0), *(getattr(forest, name) for forest, _ in forests)])
    leaves = np.concatenate([np.empty(0), *(forest.leaf for forest, _ in forests)])
    return SheetArrays(
        np.array([(*numbers, 0.0)], NUMBERS).view(np.recarray)[0],
        tokens_ns,
        requests_ns,
        np.array(attention, ATTENTION).view(np.recarray),
        rows,
        questions,
        leaves,
        np.concatenate([np.empty(0), *cuts]),
    )
