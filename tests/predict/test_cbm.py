"""CatBoost's own format, read without CatBoost: the same trees as it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dooly.predict._cbm import read_cbm
from dooly.predict._trees import ObliviousTrees, cbm_of

ROWS = np.random.default_rng(0).uniform(-2, 2, (300, 4))
TARGET = np.where(ROWS[:, 0] > 0.5, ROWS[:, 1] ** 2, 3.0) + 7.0


def fitted(**settings: Any) -> Any:  # noqa: ANN401 - CatBoost's own types
    """Return a model of the target that CatBoost has trained."""
    from catboost import CatBoostRegressor

    always = {"iterations": 20, "depth": 4, "random_seed": 0, "verbose": False, "allow_writing_files": False}
    return CatBoostRegressor(**(always | settings)).fit(ROWS, TARGET)


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
