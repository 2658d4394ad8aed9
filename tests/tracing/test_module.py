from __future__ import annotations

import gc
import importlib.metadata
import inspect
import os
import re
import sys
import warnings
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from dooly.errors import InvalidInputError, TraceError
from dooly.tracing import TracedModel, dooly_backend, trace, tracing
from passes import PassError

if TYPE_CHECKING:
    from collections.abc import Callable


class Block(nn.Module):
    """A norm and a gated projection with a residual."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 3 * hidden)
        self.down = nn.Linear(3 * hidden, hidden)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, hidden)."""
        return x + self.dropout(self.down(torch.relu(self.up(self.norm(x)))))


class Broken(nn.Module):
    """A forward that looks at its values."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        y: Tensor = self.proj(x)
        return y + 1 if y.sum().item() > 0 else y


def _state() -> dict[str, object]:
    """Return all that tracing could leave changed in the process."""
    return {
        "dynamo": torch._dynamo.config.save_config(),  # type: ignore[attr-defined]
        "fx": torch.fx.experimental._config.save_config(),  # type: ignore[attr-defined]
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "functorch": torch._functorch.config.save_config(),  # type: ignore[attr-defined]
        "warnings": list(warnings.filters),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "encoder layers": torch.backends.mha.get_fastpath_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "collector": gc.isenabled(),
    }


def test_a_traced_instance_computes_what_it_did() -> None:
    """The result is bit for bit that of the module itself, and its operations are known."""
    block, x = Block().eval(), torch.randn(5, 8)
    traced = trace(block, request_dims={"x": ("num_tokens", None)})
    assert torch.equal(traced(x), block(x))
    table = traced.traced
    assert table.model == "Block"
    assert [op.module for op in table.operations] == ["norm", "up", "", "down", "dropout", ""]
    assert {name for op in table.operations for name in op.request_dims} == {"num_tokens"}


def test_randomness_goes_on_as_without_tracing() -> None:
    """A module that draws random numbers draws the same ones, call after call."""
    block, x = Block().train(), torch.randn(5, 8)
    torch.manual_seed(3)
    expected = [block(x) for _ in range(2)]
    torch.manual_seed(3)
    traced = trace(block)
    assert [torch.equal(traced(x), y) for y in expected] == [True, True]
    assert not torch.equal(*expected)


def test_a_decorated_class_makes_traced_modules() -> None:
    """`@trace`, bare or with arguments, makes instances that trace themselves."""

    @trace
    class Bare(Block):
        pass

    @trace(request_dims={"x": ("num_reqs", None)})
    class Named(Block):
        pass

    found = []
    for make in (Bare, Named):
        module = make(8)
        assert module(torch.randn(5, 8)).shape == (5, 8)
        found.append((module.traced.model, module.traced.operations[0].request_dims))
    assert found == [("Bare", ("x.size(0)",)), ("Named", ("num_reqs",))]


def test_a_decorated_class_keeps_its_class() -> None:
    """The class behind the decorator makes, and is asked for, as ever; what the decorator makes stands in for its instances."""

    @trace
    class Decorated(Block):
        pass

    plain: type[Block] = Decorated.__wrapped__  # type: ignore[attr-defined]
    assert issubclass(plain, Block)
    assert type(plain(8)) is type(Decorated(8).module) is plain
    assert type("Sub", (plain,), {})(8)(torch.ones(2, 8)).shape == (2, 8)


def test_equal_modules_are_each_traced() -> None:
    """Every instance of a class has a table of its own, however many come before it."""
    for hidden in range(8, 20):
        traced = trace(Block(hidden).eval())
        traced(torch.randn(5, hidden))
        assert traced.traced.operations[-2].outputs[0].shape[1].value == hidden


def test_tracing_leaves_the_users_own_compiles_alone() -> None:
    """A class that was traced more often than torch recompiles a function still compiles for its user."""

    class Own(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    for hidden in range(8, 20):
        trace(Own(hidden).eval())(torch.randn(5, hidden))
    compiled = []

    def count(module: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        compiled.append(module)
        return module.forward

    block = Own().eval()
    torch.compile(block, backend=count)(torch.randn(5, 8))
    assert len(compiled) == 1


def test_another_batch_size_is_the_same_trace() -> None:
    """Calls with other sizes compute the same as the module, also with the size 1 that torch takes for a constant."""
    block = Block().eval()
    traced = trace(block, request_dims={"x": ("num_tokens", None)})
    tables = []
    for size in (5, 9, 1, 1000):
        x = torch.randn(size, 8)
        assert torch.equal(traced(x), block(x))
        tables.append(traced.traced)
    assert tables == [tables[0]] * 4


class Shifted(nn.Module):
    """Adds a row to each row, or rows to rows."""

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        return x + shift


def test_the_most_general_call_counts() -> None:
    """A named dimension that was 1 for a reason is refused, until a call shows that it is no constant."""
    traced = trace(Shifted(), request_dims={"shift": ("num_rows", None)})
    traced(torch.randn(5, 8), torch.randn(1, 8))
    with pytest.raises(PassError, match="named 'num_rows', had the size 1 in this call"):
        _ = traced.traced
    traced(torch.randn(5, 8), torch.randn(5, 8))
    assert "num_rows" in traced.traced.operations[0].request_dims


def test_a_graph_break_names_its_line() -> None:
    """A forward that torch cannot capture in one graph is refused in one line that starts with the line of the model's code."""
    line = inspect.getsourcelines(Broken.forward)[1] + 3
    message = rf"^{re.escape(__file__)}:{line}: Broken: torch.compile cannot capture its forward in one graph: [^\n]+; [^\n]+$"
    with pytest.raises(TraceError, match=message):
        trace(Broken())(torch.randn(5, 8))


@pytest.mark.parametrize("model", [3, "Block", Block.forward, int])
def test_only_modules_are_traced(model: object) -> None:
    """What is neither a module nor a module class is refused."""
    with pytest.raises(InvalidInputError, match=r"is no torch\.nn\.Module; give a module or a module class"):
        trace(model)  # type: ignore[call-overload]


def test_a_module_that_has_not_run_has_no_table() -> None:
    """The table before the first call is an error that says what to do."""
    with pytest.raises(TraceError, match="Block: not traced yet; call it once with an example input"):
        _ = trace(Block()).traced


def test_the_process_is_left_as_it_was() -> None:
    """Settings, defaults, random state, gradient mode and environment are the same after a trace."""
    block, x = Block().eval(), torch.randn(5, 8)
    before = _state()
    trace(block)(x)
    assert _state() == before


def test_the_process_is_left_as_it_was_after_an_error() -> None:
    """As after a trace, so after one that failed."""
    broken, x = Broken(), torch.randn(5, 8)
    before = _state()
    with pytest.raises(TraceError):
        trace(broken)(x)
    assert _state() == before


def test_settings_are_in_force_within_the_scope_only() -> None:
    """The probe above sees the settings that tracing needs."""
    before = _state()
    with tracing():
        assert _state() != before
    assert _state() == before


def _installed() -> bool:
    return any(entry.name == "dooly" for entry in importlib.metadata.entry_points(group="torch_dynamo_backends"))


@pytest.mark.skipif(not _installed(), reason="the distribution is not installed here, so its entry point is not either")
def test_torch_finds_the_backend_by_name() -> None:
    """`torch.compile(model, backend="dooly")` compiles to the same result, within a tracing scope and without."""
    torch.compiler.reset()  # code that an earlier test compiled for an equal module would be used again, and nothing captured
    block, x = Block().eval(), torch.randn(5, 8)
    with torch.no_grad():
        assert torch.equal(torch.compile(block, backend="dooly")(x), block(x))
    with tracing() as captures:
        assert torch.equal(torch.compile(Broken().proj, backend="dooly")(x).isfinite(), torch.ones(5, 8).bool())
    assert len(captures) == 1


def test_a_meta_module_gives_meta_results() -> None:
    """On the meta device the results have the module's shapes and element types, and nothing runs."""
    with torch.device("meta"):
        block, x = Block().eval().to(torch.bfloat16), torch.empty(5, 8, dtype=torch.bfloat16)
    traced = trace(block)
    result = traced(x)
    assert (result.device.type, result.shape, result.dtype) == ("meta", (5, 8), torch.bfloat16)
    assert len(traced.traced.operations) == 6


def test_nested_scopes_see_the_same_graph() -> None:
    """A graph that is captured within two scopes is seen by both."""
    compiled = torch.compile(Block().eval(), backend=partial(dooly_backend))
    with tracing() as outer, tracing() as inner:
        compiled(torch.randn(5, 8))
    assert outer == inner
    assert len(outer) == 1


def test_a_table_has_one_row_for_equal_layers() -> None:
    """Layers that differ in number alone share a row, which counts them and names the first."""
    traced = trace(nn.Sequential(*(Block() for _ in range(3))).eval())
    traced(torch.randn(5, 8))
    table: TracedModel = traced.traced
    assert [(op.module, op.count) for op in table.operations if op.name in {"norm", "up", "down"}] == [
        ("0.norm", 3),
        ("0.up", 3),
        ("0.down", 3),
    ]


def test_a_patched_forward_keeps_the_paths_of_its_module() -> None:
    """What a module calls from a forward that was put on it goes by its place, but not where the forward is another module's."""

    def doubled(self: Block, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x))
        return y + y

    layers = nn.Sequential(*(Block() for _ in range(3))).eval()
    layers[0].forward = MethodType(doubled, layers[0])
    layers[1].forward = MethodType(doubled, layers[2])
    traced = trace(layers, fold_layers=False)
    traced(torch.randn(5, 8))
    found = {path for op in traced.traced.operations for path, _ in op.placements if path.endswith(".up")}
    assert found == {"0.up", "1.forward.__self__.up", "2.up"}


@pytest.mark.parametrize("kind", [torch.nn.LayerNorm, torch.nn.RMSNorm])
def test_a_norm_keeps_the_names_of_sizes(kind: type[torch.nn.LayerNorm | torch.nn.RMSNorm]) -> None:
    """Norms take their width as plain numbers; it is the constructor's argument all the same, there and in what follows."""

    @trace(request_dims={"x": ("batch", "seq")})
    class Normed(torch.nn.Module):
        def __init__(self, hidden_size: int) -> None:
            super().__init__()
            self.norm = kind(hidden_size)
            self.up = torch.nn.Linear(hidden_size, 4 * hidden_size)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.norm(x))  # type: ignore[no-any-return]

    forward = kind.forward
    module = Normed(16)
    module(torch.randn(2, 3, 16))
    assert kind.forward is forward
    up = next(operation for operation in module.traced.operations if operation.module == "up")
    assert next([dim.expr for dim in tensor.shape] for tensor in up.inputs) == ["4*hidden_size", "hidden_size"]


def test_without_torch_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the base installation the error is the project's own, and names the command."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        TraceError, match=r"^dooly\.trace: torch is not installed; install it with `pip install 'dooly-llm\[torch\]'`"
    ):
        trace()
