"""A search that takes moments: short requests to a listed model on a device whose measurements ship."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from dooly import find_model, search

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.searching import SearchResult


@pytest.fixture(scope="session")
def small_search() -> Callable[..., SearchResult]:
    """Return a function that searches two candidates, and two of three ranks that cannot be, by further arguments of `search`."""
    return partial(
        search,
        [find_model("llama-3.1-8b")],
        ["h200"],
        "poisson:requests=60,prompt=256,output=8",
        {"ttft_p90": 0.1, "tpot_p90": 0.015},
        choices={"tensor_parallel_size": (1, 3), "max_num_seqs": (4, 16)},
        top=1,
    )


@pytest.fixture(scope="session")
def small_result(small_search: Callable[..., SearchResult]) -> SearchResult:
    """What one process finds."""
    return small_search(num_processes=1)
