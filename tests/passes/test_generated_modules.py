"""Signatures of generated modules: what may be written, named and placed in any way, and what may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import analyse

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph

Formula = tuple[tuple[str, str], ...]
"""The branches of a formula: each an activation over the input or the weighted input."""
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "exp": torch.exp}
FORMULAS = st.lists(
    st.tuples(st.sampled_from(sorted(ACTIVATIONS)), st.sampled_from(["x", "wx"])), min_size=2, max_size=4, unique=True
)


class Branches(nn.Module):
    """Independent branches, computed in one order and subtracted in another."""

    def __init__(self, formula: Formula, order: tuple[int, ...], size: int, eps: float) -> None:
        super().__init__()
        self.formula, self.order, self.eps = formula, order, eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        done = {}
        for place in self.order:
            name, operand = self.formula[place]
            done[place] = ACTIVATIONS[name](x * self.weight if operand == "wx" else x)
        result = done[0] + self.eps
        for place in range(1, len(self.formula)):
            result = result - done[place]
        return result


class Model(nn.Module):
    """Modules side by side, each under a name of its own."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each module's result, by its name."""
        return {name: self.get_submodule(name)(x) for name, x in inputs.items()}


@settings(max_examples=6, derandomize=True)
@given(
    data=st.data(),
    formula=FORMULAS,
    names=st.lists(st.from_regex(r"[a-z]{1,6}_[0-9]", fullmatch=True), min_size=7, max_size=7, unique=True),
)
def test_only_the_work_decides(
    capture: Callable[..., CapturedGraph], data: st.DataObject, formula: list[tuple[str, str]], names: list[str]
) -> None:
    """Names, places and the order of independent work leave a signature as it is; all that changes the work changes it."""
    branches = tuple(formula)
    forward = tuple(range(len(branches)))
    shuffled = tuple(data.draw(st.permutations(forward)))
    swapped = (branches[1], branches[0], *branches[2:])
    modules = [
        (Branches(branches, forward, 8, 1e-5), (5, 8)),
        (Branches(branches, shuffled, 8, 1e-5), (5, 8)),
        (nn.Sequential(Branches(branches, forward, 8, 1e-5)), (4, 8)),
        (Branches(swapped, forward, 8, 1e-5), (5, 8)),
        (Branches(branches, forward, 12, 1e-5), (5, 12)),
        (Branches(branches, forward, 8, 1e-6), (5, 8)),
        (Branches(branches, forward, 8, 1e-5).double(), (5, 8)),
    ]
    model = Model({name: module for name, (module, _) in zip(names, modules, strict=True)})
    inputs = {name: torch.ones(shape) for name, (_, shape) in zip(names, modules, strict=True)}
    inputs[names[-1]] = inputs[names[-1]].double()
    found = {op.operation.module.partition(".")[0]: op.signature for op in analyse(capture(model, inputs)).operations}
    base, reordered, nested, *changed = (found[name] for name in names)
    assert base == reordered == nested
    assert len({base, *changed}) == 1 + len(changed)
