"""Tables of single operations: between points, beyond them, and how far off they are."""

from __future__ import annotations

import numpy as np
import pytest

from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.predict import BatchArrays, OperationWork
from dooly.predict._measured import CollectiveTable, MeasuredSizes, left_out_error

SERVING = ServingConfig(tensor_parallel_size=2)


def _work(name: str) -> OperationWork:
    table = operation_table(find_model("llama-3.1-8b"), SERVING)
    return OperationWork(next(op for op in table.operations if op.name == name))


def _tokens(*sizes: int) -> BatchArrays:
    return BatchArrays.of([Batch((size,), (0,), 1) for size in sizes])


def test_sizes_are_interpolated_and_grow_beyond_the_largest() -> None:
    """Between points the line, below the first the first, and beyond the last in proportion."""
    table = MeasuredSizes(np.array([10.0, 20.0, 40.0]), np.array([100.0, 110.0, 210.0]))
    assert table.latency_ns(_work("o_proj"), _tokens(5, 10, 15, 30, 80)).tolist() == [100, 100, 105, 160, 420]
    assert table.source == "measured"


def test_a_collective_is_read_by_its_payload() -> None:
    """Of 8,192 bytes a token: between payloads on logarithms, beyond the largest by bandwidth."""
    table = CollectiveTable(np.array([8192.0, 32768.0]), np.array([1000.0, 4000.0]))
    assert table.latency_ns(_work("all_reduce"), _tokens(1, 2, 4, 8)) == pytest.approx([1000, 2000, 4000, 8000])


def test_the_error_is_that_of_points_left_out() -> None:
    """A straight line has none; a bend has its own; two points say nothing, so that an estimate's error is taken."""
    line = np.array([1.0, 2.0, 4.0, 8.0])
    assert left_out_error(line, 3 * line) == 0
    assert left_out_error(np.array([1.0, 2.0, 3.0]), np.array([10.0, 10.0, 30.0])) == pytest.approx(1.0)
    assert left_out_error(line[:2], line[:2]) == 0.5
