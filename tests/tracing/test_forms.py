from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._sympy import functions

from dooly.errors import InvalidInputError
from dooly.tracing import evaluate_form, form_names, rename_form, trace

if TYPE_CHECKING:
    from collections.abc import Callable


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


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (lambda n: functions.PythonMod(-n, 4), 3),
        (lambda n: functions.Mod(n, 4), 1),
        (lambda n: functions.CeilToInt(functions.IntTrueDiv(n, 2)), 3),
        (lambda n: functions.CleanDiv(5 * n, 5), 5),
        (lambda n: functions.CeilDiv(n, 4), 2),
        (lambda n: functions.FloorToInt(n * sympy.Float(0.3)), 1),
        (lambda n: functions.TruncToInt(functions.FloatTrueDiv(functions.ToFloat(n), sympy.Float(3.0))), 1),
        (lambda n: functions.RoundToInt(functions.IntTrueDiv(n, 2)), 2),
        (lambda n: functions.RoundDecimal(functions.IntTrueDiv(n, 3), 1), 1.7),
        (lambda n: functions.LShift(3, n), 96),
        (lambda n: functions.PowByNatural(n, n), 3125),
        (lambda n: functions.FloatPow(functions.ToFloat(n), sympy.Float(2.0)), 25),
        (lambda n: functions.ModularIndexing(7 * n, 2, 3), 2),
        (lambda n: functions.Where(n > 4, n, 2), 5),
        (lambda n: functions.OpaqueUnaryFn_sqrt(functions.ToFloat(5 * n)), 5),
        (lambda n: functions.BitwiseFn_bitwise_and(n, 6), 4),
        (lambda n: functions.BitwiseFn_bitwise_or(n, 6), 7),
        (lambda n: functions.BitwiseFn_bitwise_xor(n, 6), 3),
        (lambda n: functions.Max(n, 3) + functions.Min(n, 3), 8),
    ],
)
def test_torchs_functions_of_sizes_have_values(form: Callable[[sympy.Symbol], sympy.Expr], value: float) -> None:
    """Whatever arithmetic torch writes into a size is evaluated, at a number and at an array."""
    text = str(form(sympy.Symbol("n", integer=True, positive=True)))
    assert evaluate_form(text, {"n": 5}) == pytest.approx(value)
    assert evaluate_form(text, {"n": np.array([5.0, 5.0])}).tolist() == pytest.approx([value, value])


def test_a_function_without_a_value_is_an_error() -> None:
    """A function that is not known here is named."""
    with pytest.raises(InvalidInputError, match=r"^closed form Beyond\(n, 4\): Beyond has no value here; compute that"):
        evaluate_form("Beyond(n, 4)", {"n": 5})


def test_sizes_rounded_up_are_evaluated() -> None:
    """Costs of a module that pads its input to a multiple, and cuts it in half, have values."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            padded = functional.pad(x, (0, 0, 0, -len(x) % 4))
            y: Tensor = self.proj(padded[: math.ceil(padded.shape[0] / 3)])
            return y

    traced = trace(Padded(), request_dims={"x": ("n", None)})
    traced(torch.ones(7, 8))
    (proj,) = (op for op in traced.traced.operations if op.name == "proj")
    assert evaluate_form(proj.request_flops, {"n": 9}) == 2 * 4 * 8 * 8


def test_a_missing_size_is_an_error() -> None:
    """A form cannot be evaluated without each of its names."""
    with pytest.raises(KeyError):
        evaluate_form("batch*seq", {"batch": 2})


def test_names_are_replaced_whole() -> None:
    """Renaming replaces names, and no part of a name or of a function."""
    assert rename_form("b*bb + floor(b/2) + x.size(0)", {"b": "d0", "bb": "d1", "x.size(0)": "d2"}) == "d0*d1 + floor(d0/2) + d2"
