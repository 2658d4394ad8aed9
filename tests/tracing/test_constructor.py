from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dooly.tracing import trace
from dooly.tracing._constructor import constructed_sizes

if TYPE_CHECKING:
    from collections.abc import Callable


class Gated(nn.Module):
    """A feed-forward whose sizes are all 8."""

    def __init__(self, hidden: int, inner: int = 8, *, scale: float = 1.0, **more: int) -> None:
        super().__init__()
        self.scale = scale
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, more.get("out", hidden), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, out)."""
        y: Tensor = self.down(torch.relu(self.up(x))) * self.scale
        return y


@dataclass(frozen=True, slots=True)
class Sizes:
    """A configuration object."""

    hidden: int
    inner: int


def _exprs(make: Callable[[], Any]) -> dict[str, list[str]]:
    """Return the dimensions of each projection's weight."""
    traced = make()
    traced(torch.randn(5, 8))
    return {op.name: [d.expr for d in op.inputs[0].shape] for op in traced.traced.operations if op.name in {"up", "down"}}


def test_constructor_arguments_name_the_sizes() -> None:
    """Integers given by place, by name, by default and as further names all keep theirs, though equal in value."""
    assert _exprs(lambda: trace(Gated)(8, out=8)) == {"up": ["inner", "hidden"], "down": ["out", "inner"]}


def test_configuration_objects_name_the_sizes() -> None:
    """The fields of a dataclass that the constructor takes are names, and the object itself is left as it was."""

    @trace
    class Configured(Gated):
        def __init__(self, sizes: Sizes) -> None:
            super().__init__(sizes.hidden, sizes.inner)

    sizes = Sizes(8, 8)
    assert _exprs(lambda: Configured(sizes)) == {"up": ["inner", "hidden"], "down": ["hidden", "inner"]}
    assert [type(n) for n in (sizes.hidden, sizes.inner)] == [int, int]


def test_an_instance_is_named_by_its_configuration() -> None:
    """A module that was made from its `config` is named by the fields; another instance by its parameters."""

    class Configured(Gated):
        def __init__(self, config: Sizes) -> None:
            super().__init__(config.hidden, config.inner)
            self.config = config

    assert _exprs(lambda: trace(Configured(Sizes(8, 8)))) == {"up": ["inner", "hidden"], "down": ["hidden", "inner"]}
    assert _exprs(lambda: trace(Gated(8))) == {
        "up": ["up.weight.size(0)", "up.weight.size(1)"],
        "down": ["down.weight.size(0)", "up.weight.size(0)"],
    }


def test_a_constructor_that_fails_on_the_meta_device_gives_no_names() -> None:
    """What reads its own values, wants exact integers or takes modules is traced as ever."""

    @trace
    class Reads(Gated):
        def __init__(self, hidden: int) -> None:
            super().__init__(hidden)
            self.total = float(self.up.weight.detach().sum())

    @trace
    class Exact(Gated):
        def __init__(self, hidden: int) -> None:
            if type(hidden) is not int:
                raise TypeError(hidden)
            super().__init__(hidden)

    @trace
    class Wraps(Gated):
        def __init__(self, up: nn.Module, hidden: int) -> None:
            super().__init__(hidden)
            self.up = up

    plain = {"up": ["up.weight.size(0)", "up.weight.size(1)"], "down": ["down.weight.size(0)", "up.weight.size(0)"]}
    assert [_exprs(make) for make in (lambda: Reads(8), lambda: Exact(8), lambda: Wraps(nn.Linear(8, 8, bias=False), 8))] == [
        plain
    ] * 3


def test_the_second_call_is_not_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    """The constructor prints once, random numbers go on as without it, and neither device nor arguments change."""

    @trace
    class Noisy(Gated):
        def __init__(self, hidden: int, seen: list[int]) -> None:
            sys.stdout.write("made\n")
            sys.stderr.write("warned\n")
            seen.append(hidden)
            super().__init__(hidden + 0 * random.randrange(2) + 0 * int(np.random.rand()))  # noqa: NPY002, S311 - the global states

    def state() -> list[object]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_default_device()]  # noqa: NPY002

    seen: list[int] = []
    module = Noisy(8, seen)
    module(torch.randn(5, 8))
    before = state()
    assert module.traced.operations[0].inputs[0].shape[1].expr == "hidden"
    assert (state(), seen) == (before, [8])
    assert capsys.readouterr() == ("made\n", "warned\n")


def test_why_there_are_no_names_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the second call of the constructor raises is no error of the trace; the log tells it at debug level."""

    @trace
    class Once(Gated):
        made: ClassVar[list[int]] = []

        def __init__(self, hidden: int) -> None:
            super().__init__(8 // (1 - len(self.made)))
            self.made.append(hidden)

    module = Once(8)
    with caplog.at_level("DEBUG", logger="dooly"):
        assert _exprs(lambda: module)["up"] == ["up.weight.size(0)", "up.weight.size(1)"]
    reason = "building from tracked sizes fails: ZeroDivisionError: integer division or modulo by zero"
    assert [r.getMessage() for r in caplog.records if r.name.startswith("dooly")] == [
        f"Once: sizes keep the names of module attributes: {reason}"
    ]


def test_an_error_outside_the_constructor_is_not_hidden() -> None:
    """Only what the constructor raises is passed over: a result that is no module is an error."""
    with pytest.raises(AttributeError, match="named_modules"):
        constructed_sizes(lambda hidden: hidden, (8,), {})


def test_signatures_do_not_depend_on_names() -> None:
    """The same module has the same signatures with names and without."""
    named, plain = trace(Gated)(8, 16), trace(Gated(8, 16))
    tables = []
    for module in (named, plain):
        module(torch.randn(5, 8))
        tables.append([(op.signature, op.request_flops, op.request_bytes) for op in module.traced.operations])
    assert tables[0] == tables[1]
    assert named.traced.operations[0].inputs != plain.traced.operations[0].inputs


def test_a_transformers_model_is_named_by_its_configuration() -> None:
    """A model of Transformers, given as an instance, shows the fields of its configuration."""
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed; the cpu extra brings it")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64, "head_dim": 16}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1)
    traced = trace(transformers.LlamaForCausalLM(config).eval())
    traced(torch.ones(3, 7, dtype=torch.int64))
    weights = {op.name: [d.expr for d in op.inputs[0].shape] for op in traced.traced.operations if op.inputs}
    assert [weights[name] for name in ("q_proj", "k_proj", "o_proj", "up_proj", "lm_head")] == [
        ["head_dim*num_attention_heads", "hidden_size"],
        ["head_dim*num_key_value_heads", "hidden_size"],
        ["hidden_size", "head_dim*num_attention_heads"],
        ["intermediate_size", "hidden_size"],
        ["vocab_size", "hidden_size"],
    ]
