"""CatBoost's own format, read without CatBoost: the same trees as it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dooly.predict._cbm import read_cbm
from dooly.predict._trees import ObliviousTrees, cbm_of

ROWS = np.random.default_rng(0).uniform(-2, 2, (300, 4))
TARGET = np.where(ROWS[:, 0] > 0.5, ROWS[:, 1] ** 2, 3.0) + 7.0


def fitted(rows: Any = ROWS, target: Any = TARGET, **settings: Any) -> Any:  # noqa: ANN401 - CatBoost's own types
    """Return a model of the target that CatBoost has trained."""
    from catboost import CatBoostRegressor

    always = {"iterations": 20, "depth": 4, "random_seed": 0, "verbose": False, "allow_writing_files": False}
    return CatBoostRegressor(**(always | settings)).fit(rows, target)


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_trees_predict_as_catboost_does(depth: int) -> None:
    """Whatever their depth, on rows that they were trained on and on others, their bias and scale included."""
    model = fitted(depth=depth)
    model.set_scale_and_bias(1.5, 0.25)
    rows = np.concatenate([ROWS, np.random.default_rng(1).uniform(-9, 9, (100, 4))])
    assert ObliviousTrees.of(model).predict(rows) == pytest.approx(model.predict(rows), rel=1e-12)


def test_trees_of_several_depths_predict_as_catboost_does() -> None:
    """CatBoost cuts a tree short where no question helps: a target of two values needs one question."""
    from catboost import CatBoostRegressor

    model = CatBoostRegressor(iterations=30, depth=6, verbose=False, allow_writing_files=False, random_seed=0)
    rows = np.repeat(ROWS[:6], 5, axis=0)
    model.fit(rows, rows[:, 0])
    assert len(set(read_cbm(cbm_of(model)).depth.tolist())) > 1
    assert ObliviousTrees.of(model).predict(rows) == pytest.approx(model.predict(rows), rel=1e-12)


def test_metadata_comes_with_the_trees() -> None:
    """What was written beside the trees is read, in any letters."""
    model = fitted()
    model.get_metadata()["device"] = "Größe"
    assert read_cbm(cbm_of(model)).metadata["device"] == "Größe"


@pytest.mark.parametrize("content", [b"", b"CBM1", b"nothing of the kind", b"CBM1" + bytes(60)])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    """Another file, or a part of one, is one line."""
    with pytest.raises(ValueError, match=r"^(not in CatBoost's format|cut off or altered \(.+\))$"):
        read_cbm(content)


def test_a_model_that_was_cut_off_is_refused() -> None:
    """Wherever it ends."""
    content = cbm_of(fitted())
    for end in range(0, len(content) - 400, 97):
        with pytest.raises(ValueError, match=r".+"):
            read_cbm(content[:end])


def test_trees_of_another_kind_are_refused() -> None:
    """A tree whose levels ask different questions is not taken for one whose levels do not."""
    with pytest.raises(ValueError, match="has unsymmetric trees"):
        read_cbm(cbm_of(fitted(grow_policy="Depthwise")))


MISSING = np.where(ROWS < -1, np.nan, ROWS)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"loss_function": "MultiRMSE", "target": np.column_stack([TARGET, -TARGET])}, "has 2 targets"),
        ({"loss_function": "RMSEWithUncertainty"}, "has 2 targets"),
        ({"loss_function": "Poisson"}, "was fitted by Poisson, whose predictions are no sums"),
        ({"rows": MISSING, "nan_mode": "Max"}, "takes missing values for the largest"),
    ],
)
def test_models_that_predict_otherwise_are_refused(settings: dict[str, Any], rule: str) -> None:
    """Their trees are read as others', and would predict something else."""
    with pytest.raises(ValueError, match=f"^{rule}$"):
        read_cbm(cbm_of(fitted(**settings)))


@pytest.mark.parametrize("loss", ["MAE", "MAPE", "LogCosh", "Huber:delta=1", "Expectile:alpha=0.3"])
def test_models_of_other_losses_are_sums_too(loss: str) -> None:
    """Missing values exceed no border, as CatBoost has it by default."""
    model = fitted(rows=MISSING, loss_function=loss)
    assert ObliviousTrees.of(model).predict(MISSING) == pytest.approx(model.predict(MISSING), rel=1e-12)


def test_a_file_of_another_length_than_it_says_is_refused() -> None:
    """By one byte already, or by something that follows."""
    content = cbm_of(fitted())
    for altered in (content[:-1], content + b"\0"):
        with pytest.raises(ValueError, match=r"^cut off or altered \(\d+ bytes where it says \d+\)$"):
            read_cbm(altered)


def test_leaves_that_are_not_of_the_trees_are_refused() -> None:
    """A tree that is said to ask one question fewer would take the leaves of its neighbours."""
    content = cbm_of(fitted(iterations=3, depth=4))
    sizes = np.full(3, 4, dtype="<i4").tobytes()
    assert content.count(sizes) == 1
    for other in (3, 5, -1):
        altered = content.replace(sizes, sizes[:-4] + np.array([other], dtype="<i4").tobytes())
        with pytest.raises(ValueError, match=r"^cut off or altered \(12 questions and 48 leaves are not of its trees\)$"):
            read_cbm(altered)


def test_bytes_that_were_changed_end_no_process() -> None:
    """Wherever one is, the file is refused in one line, or read as some trees, whose questions are about features that may be."""
    content = cbm_of(fitted(iterations=3, depth=2))
    for place in range(8, len(content)):
        altered = bytearray(content)
        altered[place] ^= 0xFF
        try:
            found = read_cbm(bytes(altered))
        except ValueError:
            continue
        assert (found.feature >= 0).all()
        assert len(found.feature) == found.depth.sum()
