from __future__ import annotations

import numpy as np
import pytest

from dooly.trace import evaluate_form, form_names, rename_form


@pytest.mark.parametrize(
    ("text", "names", "value"),
    [
        ("2048*num_tokens + 3", ("num_tokens",), 2048 * 5 + 3),
        ("batch*seq**2", ("batch", "seq"), 125),
        ("(194//(3*heads))", ("heads",), 12),
        ("4*x.size(0) + mask.lengths", ("x.size(0)", "mask.lengths"), 25),
        ("8*args[0].size(1)", ("args[0].size(1)",), 40),
        ("Max(7, S)", ("S",), 7),
        ("1.5e-05*E", ("E",), 7.5e-05),
        ("12", (), 12),
    ],
)
def test_forms_have_names_and_values(text: str, names: tuple[str, ...], value: float) -> None:
    """A form's names are found, also where they mean something to sympy, and its value follows from theirs."""
    assert form_names(text) == names
    assert evaluate_form(text, dict.fromkeys(names, 5)) == pytest.approx(value)


def test_forms_take_arrays() -> None:
    """Sizes may be arrays, and so is the value then."""
    sizes = {"batch": np.array([1.0, 2.0]), "seq": np.array([3.0, 5.0])}
    assert evaluate_form("2*batch*seq + 1", sizes).tolist() == [7.0, 21.0]


def test_a_missing_size_is_an_error() -> None:
    """A form cannot be evaluated without each of its names."""
    with pytest.raises(KeyError):
        evaluate_form("batch*seq", {"batch": 2})


def test_names_are_replaced_whole() -> None:
    """Renaming replaces names, and no part of a name or of a function."""
    assert rename_form("b*bb + floor(b/2) + x.size(0)", {"b": "d0", "bb": "d1", "x.size(0)": "d2"}) == "d0*d1 + floor(d0/2) + d2"
