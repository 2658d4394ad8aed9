"""Tables of single operations: between points, beyond them, and how far off they are."""

from __future__ import annotations

import numpy as np
import pytest

from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.predict import BatchArrays, OperationWork, listed_hardware
from dooly.predict._estimated import Roofline
from dooly.predict._measured import CollectiveTable, MeasuredOperation, MeasuredSizes, left_out_error
from dooly.predict._regressor import fit_regressor
from dooly.predict._trees import ObliviousTrees

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


def test_a_table_has_the_interval_of_what_was_fitted_beside_it() -> None:
    """Records that an operation goes by tell how far it may be off, as long as something was fitted to them."""
    sizes, known_ns = np.arange(1.0, 31.0), 10.0 * np.arange(1.0, 31.0)
    fitted = MeasuredOperation(fit_regressor(sizes[:, None], sizes[:, None], known_ns))
    assert MeasuredSizes(sizes, known_ns, fitted).regressor is fitted.regressor
    assert MeasuredSizes(sizes, known_ns).regressor is None


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


def test_a_product_grows_beyond_by_the_roofline() -> None:
    """A head that waits for its weights at 256 rows does not take twice as long at 512: its roofline tells by how much."""
    (hardware,) = (device for device in listed_hardware() if device.name == "rtxpro6000")
    work, rows = _work("logits_processor"), BatchArrays.of([Batch((1,) * n, (100,) * n) for n in (256, 512)])
    table = MeasuredSizes(np.array([1.0, 256.0]), np.array([500_000.0, 832_000.0]), Roofline(hardware))
    at_256, at_512 = table.latency_ns(work, rows)
    roofline = hardware.roofline_ns(*work.cost(rows))
    assert at_512 / at_256 == pytest.approx(roofline[1] / roofline[0])
    assert at_512 / at_256 < 1.6


def test_trees_refuse_features_of_another_kind() -> None:
    """Fewer columns than the trees ask about would read what lies behind them."""
    trees = ObliviousTrees(np.array([[4]]), np.array([[1.0]], dtype=np.float32), np.array([[0.0, 1.0]]), 1.0, 0.0)
    assert trees.predict(np.array([[0, 0, 0, 0, 2.0]])).tolist() == [1]
    with pytest.raises(ValueError, match="feature 4 of 3"):
        trees.predict(np.zeros((1, 3)))
