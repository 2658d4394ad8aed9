"""Fits kept in their store: made once, found by what they were made from, and made again where that is another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dbstore import Record, Store
from dooly.batch import Batch
from dooly.catalog import point_of
from dooly.predict import _kept_fits as kept_fits
from dooly.predict import drop_fits_of_other_code, load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbstore import Environment
    from dooly.engines import ModelSource

ROOT = Path(__file__).parents[2]
ASKED = [Batch((1,) * 5, (100,) * 5), Batch((90,), (170,), 1), Batch((1, 1, 70), (150, 90, 0), 1)]
HEAVY = "{'sympy', 'catboost', 'scipy', 'networkx', 'torch', 'zarr'}"
"""Packages that a kept fit, or a fit that ships, needs none of."""


@pytest.fixture
def make_bent(make_store: Callable[..., Store], environment: Environment, bent_laws: Any) -> Callable[[Path], Store]:  # noqa: ANN401
    """Return a function that makes a store of the small model by laws that take trees to fit."""
    return partial(_make_bent, make_store, environment, bent_laws)


def _make_bent(make_store: Callable[..., Store], environment: Environment, laws: Any, path: Path) -> Store:  # noqa: ANN401
    return make_store(path, environment, laws=laws)


@pytest.fixture
def fitted(make_bent: Callable[[Path], Store], tmp_path: Path, model: ModelSource) -> Path:
    """A store of the small model with its fits."""
    store = make_bent(tmp_path / "db")
    load_latency_model(store, model)
    return tmp_path / "db"


def steps_s(path: Path, model: ModelSource) -> list[float]:
    """Return what steps take by a store that is open for reading."""
    latency = load_latency_model(Store.open(path), model)
    return [latency.step(batch).seconds for batch in ASKED]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that the signatures whose records are read are added to."""
    read, signatures = Store.read, []

    def counted(self: Store, signature: str, environment: str) -> tuple[Record, ...]:
        signatures.append(signature)
        return read(self, signature, environment)

    monkeypatch.setattr(Store, "read", counted)
    return signatures


def test_a_fitted_model_loads_without_its_records(
    fitted: Path, make_bent: Callable[[Path], Store], model: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads the store afterwards gets the very same, without CatBoost and without a record."""
    made = make_bent(fitted.with_name("unfitted"))
    expected = steps_s(fitted.with_name("unfitted"), model)
    assert Store.open(fitted.with_name("unfitted")).documents("regressors") == ()
    read = count_reads(monkeypatch)
    monkeypatch.setitem(sys.modules, "catboost", None)  # importing it fails
    assert steps_s(fitted, model) == expected
    assert read == []
    with pytest.raises(ImportError):
        load_latency_model(made, model)
    assert Store.open(fitted).verify() == ()


def test_new_records_make_new_fits(
    fitted: Path, environment: Environment, model: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hangs on an operation that was measured again is fitted again: itself, its layer, and what sparse sweeps lack."""
    store = Store.open(fitted, "a")
    before = set(store.documents("regressors"))
    (point, *_) = store.points("up-signature", environment.digest)
    store.write(Record("up-signature", environment.digest, point, np.array([10**9] * 3)))
    load_latency_model(store, model)
    assert len(set(store.documents("regressors")) - before) == 3
    read = count_reads(monkeypatch)
    load_latency_model(store, model)
    assert read == []


@pytest.fixture(scope="module")
def sparse(make_store: Callable[..., Store], environment: Environment, model: ModelSource, tmp_path_factory: Any) -> Path:  # noqa: ANN401
    """A store of sparse sweeps with its fits."""
    path: Path = tmp_path_factory.mktemp("sparse") / "db"
    store = make_store(path, environment, where=lambda b: b.num_tokens in {1, 256} or b.num_reqs == 8 or b.num_tokens % 3 == 0)
    load_latency_model(store, model)
    return path


@pytest.mark.parametrize("name", ["step", "layer", "attention", "up", "head"])
def test_a_kept_model_is_a_fresh_one_after_any_record(sparse: Path, model: ModelSource, tmp_path: Path, name: str) -> None:
    """One record more of any operation, beyond all before: whatever hangs on it is what a store without fits would say."""
    store = Store.open(shutil.copytree(sparse, tmp_path / "db"), "a")
    operations = load_latency_model(store, model).traced.operations
    (operation,) = (op for op in operations if op.name == name)
    (environment,) = store.documents("environments")
    far = point_of(operation, Batch((100,) * 9, (0,) * 9, 9))
    store.write(Record(operation.signature, environment, far, np.array([9_000_000] * 3)))
    kept = load_latency_model(store, model)
    shutil.rmtree(tmp_path / "db" / "regressors")
    fresh = load_latency_model(Store.open(tmp_path / "db"), model)
    assert kept.domain == fresh.domain
    assert [kept.step(batch) for batch in ASKED] == [fresh.step(batch) for batch in ASKED]


def test_other_code_makes_new_fits(fitted: Path, model: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of an earlier version of the predictors are left alone, and not used."""
    before = len(Store.open(fitted).documents("regressors"))
    monkeypatch.setattr(kept_fits, "_version", lambda: "later")
    load_latency_model(Store.open(fitted, "a"), model)
    assert len(Store.open(fitted).documents("regressors")) == 2 * before


def test_fits_of_other_code_can_go(fitted: Path, model: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """What earlier code left goes without being read, and what this code made stays and is found."""
    store = Store.open(fitted, "a")
    own = set(store.documents("regressors"))
    with monkeypatch.context() as patch:
        patch.setattr(kept_fits, "_version", lambda: "earlier")
        load_latency_model(store, model)
    assert len(store.documents("regressors")) == 2 * len(own)
    drop_fits_of_other_code(store)
    assert set(store.documents("regressors")) == own
    read = count_reads(monkeypatch)
    load_latency_model(store, model)
    assert read == []


def test_code_that_a_fit_runs_tells_it_apart(
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever module of Dooly runs while a fit is made is part of its version, whoever calls it."""
    ran: set[Path] = set()
    get = kept_fits.KeptFits.get

    def watched(self: Any, what: str, operations: Any, make: Callable[[], Any], *more: Any) -> Any:  # noqa: ANN401 - any fit
        def watched_make() -> Any:  # noqa: ANN401 - any fit
            sys.setprofile(lambda frame, *_: ran.add(Path(frame.f_code.co_filename)))
            try:
                return make()
            finally:
                sys.setprofile(None)

        return get(self, what, operations, watched_make, *more)

    monkeypatch.setattr(kept_fits.KeptFits, "get", watched)
    store = make_store(tmp_path / "db", environment, where=lambda b: b.num_tokens in {1, 256} or b.num_tokens % 3 == 0)
    load_latency_model(store, model)
    ours = {path for path in ran if path.is_relative_to(ROOT / "dooly")}
    assert {ROOT / "dooly" / "predict" / "_filled.py", ROOT / "dooly" / "catalog" / "_grid.py"} <= ours
    assert ours <= set(kept_fits.fitting_code())


def test_a_damaged_fit_costs_a_fit(fitted: Path, model: ModelSource) -> None:
    """It is not believed: the answer is the same."""
    expected = steps_s(fitted, model)
    for file in fitted.glob("regressors/*/zarr.json"):
        file.write_text(file.read_text().replace("num_points", "no_points"))
    assert steps_s(fitted, model) == expected


def test_a_store_that_cannot_be_written_answers(
    fitted: Path, make_bent: Callable[[Path], Store], model: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full when a fit is kept costs the next one, not this answer."""
    expected = steps_s(fitted, model)
    store = make_bent(fitted.with_name("full"))

    def refuse(*_arguments: Any) -> None:  # noqa: ANN401 - whatever is written
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dbstore._local._write", refuse)
    latency = load_latency_model(store, model)
    assert [latency.step(batch).seconds for batch in ASKED] == expected
    assert store.documents("regressors") == ()


@pytest.mark.parametrize("place", ["store", "hardware"])
def test_loading_loads_nothing_heavy(fitted: Path, model: ModelSource, place: str) -> None:
    """Neither a fitted store nor a shipped device needs CatBoost, sympy or SciPy: they take longer to load than the rest."""
    given = {
        "store": f"Store.open({str(fitted)!r}), ModelSource({model.name!r}, Path({str(model.folder)!r}))",
        "hardware": "None, find_model('llama-3.1-8b'), hardware='h200'",
    }
    code = (
        "import sys; from pathlib import Path; from dbstore import Store; from dooly.engines import ModelSource, find_model; "
        f"from dooly.predict import load_latency_model; load_latency_model({given[place]}); "
        f"print(*({HEAVY} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "\n"
