"""Forwards of plain modules that cannot be measured, and what the others find unchanged afterwards."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

import pytest
import torch

from dbstore import Store
from dooly.errors import MeasurementError, TraceError
from dooly.measure import profile_module
from dooly.tracing import trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Spend little on each point: what is tested is not how steady the times are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dooly.measure.module._profiler._BUDGET_NS", 10_000_000)
        yield


def test_a_module_that_has_not_run_is_refused(modules: ModuleType, tmp_path: Path) -> None:
    """Without a trace there is nothing to measure."""
    with pytest.raises(TraceError, match="not traced yet"):
        profile_module(trace(modules.Pairs()), Store.open(tmp_path / "db", "a"), request_dims={})


def test_a_forward_that_fails_is_named(tmp_path: Path) -> None:
    """A size that the module itself refuses is an error that names it."""

    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table(torch.arange(x.shape[0]))

    traced = trace(Positions(), request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 4))
    with pytest.raises(MeasurementError, match=r"^Positions: forward fails at rows=9: [^\n]+; leave those sizes out$"):
        profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (4, 9)})


def test_an_argument_of_which_only_sizes_are_read_grows_with_the_others(tmp_path: Path) -> None:
    """A tensor whose elements no operation reads has the size of the request dimension that it shares."""

    class Alike(torch.nn.Linear):
        def forward(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            if x.shape[0] != like.shape[0]:
                raise ValueError("rows differ")
            return super().forward(x)

    traced = trace(Alike(4, 4), request_dims={"x": ("rows", None), "like": ("rows", None)})
    traced(torch.randn(3, 4), torch.randn(3, 4))
    assert profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (3, 9)}).num_left == 0


def test_a_profile_drops_fits_of_other_code(tmp_path: Path) -> None:
    """What an earlier version fitted, and nobody finds any more, does not pile up in a store that is profiled into."""
    store = Store.open(tmp_path / "db", "a")
    store.write_document("regressors", "0123456789abcdef", {"fit": 1})
    traced = trace(torch.nn.Linear(4, 4), request_dims={"input": ("rows", None)})
    traced(torch.randn(3, 4))
    profile_module(traced, store, request_dims={"rows": (3,)})
    assert store.documents("regressors") == ()


def test_any_error_of_the_module_is_named(tmp_path: Path) -> None:
    """An error of whatever type that the module's own code raises at a size is one line that names the size."""

    class Short(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_compiling() and x.shape[0] > 5:
                raise ValueError("no more than 5 rows")
            return super().forward(x)

    traced = trace(Short(4, 4), request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 4))
    with pytest.raises(MeasurementError, match=r"^Short: forward fails at rows=9: no more than 5 rows; leave those sizes out$"):
        profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (9,)})


def test_a_module_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    """Where a module needs copies and holds what cannot be copied, the error names both."""
    module = torch.nn.Linear(4, 4)
    module.lock = Lock()  # type: ignore[assignment]
    traced = trace(module, request_dims={"input": ("rows", None)})
    traced(torch.randn(3, 4))
    with pytest.raises(MeasurementError, match=r"^Linear: copy\.deepcopy of it fails: cannot pickle '_thread.lock' object; ."):
        profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (2,)})


def test_another_branch_than_the_traced_one_is_refused(tmp_path: Path) -> None:
    """Where the module's code goes another way at a size than at the traced one, the error names the traced condition."""

    class Branch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.large(x) if x.shape[0] > 16 else self.small(x)
            return y

    traced = trace(Branch(), request_dims={"x": ("rows", None)})
    traced(torch.randn(4, 4))
    store = Store.open(tmp_path / "db", "a")
    assert profile_module(traced, store, request_dims={"rows": (2, 16)}).num_left == 0
    with pytest.raises(MeasurementError, match=r"^Branch: its trace holds for rows <= 16 only, so not at rows=17; [^\n]*$"):
        profile_module(traced, store, request_dims={"rows": (17,)})
    untouched = Store.open(tmp_path / "untouched", "a")
    with pytest.raises(MeasurementError, match="not at rows=17"):
        profile_module(traced, untouched, request_dims={"rows": (2, 16, 17)})
    assert not untouched.documents("environments")


def test_a_size_of_one_that_broadcasts_is_refused_in_plain_words(tmp_path: Path) -> None:
    """Where one row means something else than several, as beside another tensor of rows, the error says so and what to do."""

    class Flat(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = super().forward(x).flatten(0, 1)
            return 2 * rows if rows.shape[0] == 4 else rows

    traced = trace(Flat(4, 4), request_dims={"x": ("batch", None, None)})
    traced(torch.randn(2, 4, 4))
    with pytest.raises(MeasurementError) as caught:
        profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"batch": (1, 2), "x.size(1)": (4,)})
    assert str(caught.value) == (
        "Flat: runs other code at batch=1 than it was traced at, as a size of 1 is a case of its own to PyTorch (broadcasting); "
        "leave batch=1 out"
    )


def test_the_module_runs_as_it_was_traced(tmp_path: Path) -> None:
    """Training mode and autocast are what they were in the traced call while it measures, and then what they were before."""
    seen: set[tuple[bool, bool]] = set()

    class Watched(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_compiling():
                seen.add((self.training, torch.is_autocast_enabled("cpu")))
            return super().forward(x)

    sizes = {"rows": (2,)}
    for training in (False, True):
        traced = trace(Watched(4, 4).train(training), request_dims={"x": ("rows", None)})
        with torch.autocast("cpu", torch.bfloat16, enabled=training):
            traced(torch.randn(3, 4))
        traced.train(not training)
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=not training):
            profile_module(traced, Store.open(tmp_path / f"{training}", "a"), request_dims=sizes)
            assert torch.is_autocast_enabled("cpu") is not training
        assert seen == {(training, training)}
        assert traced.training is not training


def test_a_buffer_that_forward_replaces_is_kept(tmp_path: Path) -> None:
    """A buffer in whose place the forward puts another tensor is afterwards the tensor that it was, with its values."""

    class Last(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.register_buffer("last", torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x
            return super().forward(x)

    module = Last()
    traced = trace(module, request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 4))
    module.last = before = torch.ones(2)
    assert profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (2, 5)}).num_left == 0
    assert module.last is before
    assert torch.equal(before, torch.ones(2))


def test_a_module_on_the_meta_device_is_refused(modules: ModuleType, tmp_path: Path) -> None:
    """What has no device to run on cannot be measured."""
    with torch.device("meta"):
        traced = trace(modules.Pairs(), request_dims={"x": ("rows", None)})
        traced(torch.empty(3, 8))
    with pytest.raises(MeasurementError, match="device 'meta'"):
        profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (2,)})
