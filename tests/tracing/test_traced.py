from __future__ import annotations

import copy
import gc
import inspect
import logging
import pickle
import re
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dooly.errors import InvalidInputError, TraceError
from dooly.tracing import TracedModel, trace


class Decoder(nn.Module):
    """A one-layer language model with tied weights, a buffer that counts calls, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
        self.dropout = nn.Dropout(0.5)
        self.num_heads = 4
        self.register_buffer("num_calls", torch.zeros(1))

    def forward(self, ids: Tensor, mask: Tensor | None = None, *, return_dict: bool = False) -> Tensor | dict[str, Tensor]:
        """Return logits (batch, seq, vocab)."""
        self.num_calls += 1
        batch, seq = ids.shape
        x = self.embed(ids)
        q, k, v = (t.view(batch, seq, self.num_heads, -1).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        masked = None if mask is None else mask[:, None, None, :]
        y = functional.scaled_dot_product_attention(q, k, v, masked, is_causal=mask is None)
        logits: Tensor = self.head(self.dropout(x + self.out(y.transpose(1, 2).reshape(batch, seq, -1))))
        return {"logits": logits} if return_dict else logits


class Chosen(nn.Module):
    """A layer over the rows that a mask chooses: as many as the data say."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return (chosen, 8)."""
        y: Tensor = self.proj(x[(x.sum(-1) > 0).nonzero().squeeze(1)])
        return y


class Whole(nn.Module):
    """A model with a traced part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.scale = part, nn.Parameter(torch.ones(50))

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (batch, seq, vocab)."""
        logits: Tensor = self.part(ids) * self.scale
        return logits


IDS = torch.arange(21).reshape(3, 7)
MASK = torch.ones(3, 7, dtype=torch.bool)


def origins(table: TracedModel, module: str) -> list[list[str]]:
    """Return the origins of a module's inputs, dimension by dimension."""
    (operation,) = (op for op in table.operations if op.module == module)
    return [[dim.origin for dim in tensor.shape] for tensor in operation.inputs]


def test_a_transformer_has_the_right_origins() -> None:
    """Vocabulary, heads and hidden size come from the configuration, batch and sequence from the request."""
    model = Decoder().eval()
    traced = trace(model, request_dims={"ids": ("batch", "seq")})
    assert torch.equal(traced(IDS), model(IDS))
    assert origins(traced.traced, "embed") == [["config", "config"], ["request", "request"]]
    attention = next(
        op for op in traced.traced.operations if op.module == "" and len(op.inputs) == 3 and len(op.inputs[0].shape) == 4
    )
    assert [d.origin for d in attention.inputs[0].shape] == ["request", "config", "request", "config"]
    assert [d.value for d in attention.inputs[0].shape] == [None, 4, None, 4]
    assert {name for op in traced.traced.operations for name in op.request_dims} <= {"batch", "seq", "batch*seq"}


@pytest.mark.parametrize("training", [False, True])
def test_torchs_own_encoder_layer_is_traced_in_parts(training: bool) -> None:  # noqa: FBT001 - a case
    """`nn.TransformerEncoderLayer` shows its layers, and computes what it did, on its fused path or off it."""
    layer, x = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).train(training), torch.randn(3, 7, 16)
    traced = trace(layer, request_dims={"src": ("batch", "seq")})
    with torch.no_grad():
        assert torch.equal(traced(x), layer(x))
    assert {"self_attn", "linear1", "linear2", "norm1"} <= {op.module for op in traced.traced.operations}


def test_sizes_that_the_data_set_are_refused_with_their_line() -> None:
    """The rows that `nonzero` finds are told by no request dimension; the error names the line and the operator."""
    line = inspect.getsourcelines(Chosen.forward)[1] + 2
    message = rf"^{re.escape(__file__)}:{line}: Chosen: aten.nonzero.default gives a size or number that depends on the data; "
    with pytest.raises(TraceError, match=message):
        trace(Chosen())(torch.randn(9, 8))


def test_every_kind_of_call_has_a_table() -> None:
    """Other arguments and another mode are other tables; `traced` is the one with the most sizes."""
    traced = trace(Decoder().eval())
    traced(IDS)
    traced(IDS, mask=MASK)
    traced.train()(IDS)
    traced.eval()(IDS, None)
    names = ["ids: int64[_, _]", "ids: int64[_, _], mask: bool[_, _]", "ids: int64[_, _]; training"]
    assert list(traced.tables) == names
    assert traced.traced is traced.tables[names[1]]


def test_a_call_runs_the_module_once() -> None:
    """Tracing runs nothing: buffers and other state change as often as without it."""
    traced = trace(Decoder().eval())
    assert traced(IDS, return_dict=True).keys() == {"logits"}
    traced(IDS)
    assert traced.num_calls.item() == 2


def test_gradients_are_the_modules_own() -> None:
    """A traced module trains as the module does."""
    model = Decoder()
    twin = copy.deepcopy(model)
    for network in (trace(model), twin):
        torch.manual_seed(0)
        network(IDS).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_autocast_is_traced_as_it_runs() -> None:
    """Under autocast the result and the operations have its element type."""
    model = Decoder().eval()
    traced = trace(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(traced(IDS), model(IDS))
    assert next(op for op in traced.traced.operations if op.module == "head").outputs[0].dtype == "bfloat16"


def test_it_stands_in_for_the_module() -> None:
    """Parameters, buffers, state, attributes, mode and element type are the module's own, under the same names."""
    model = Decoder()
    traced = trace(model)
    assert isinstance(traced, nn.Module)
    assert list(traced.state_dict()) == list(model.state_dict())
    assert [n for n, _ in traced.named_parameters()] == [n for n, _ in model.named_parameters()]
    traced.load_state_dict(Decoder().state_dict())
    traced.to(torch.float64).eval()
    traced.num_heads = 2
    assert (model.qkv.weight.dtype, model.training, traced.training, model.num_heads) == (torch.float64, False, False, 2)
    with pytest.raises(AttributeError, match="no_such"):
        _ = traced.no_such


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda traced: pickle.loads(pickle.dumps(traced))])  # noqa: S301 - our own
def test_it_is_copied_with_its_module(copied: Any) -> None:  # noqa: ANN401 - a function
    """A copy is a traced module of its own."""
    traced = trace(Decoder().eval(), request_dims={"ids": ("batch",)})
    twin = copied(traced)
    assert torch.equal(twin(IDS), traced(IDS))
    assert twin.module is not traced.module
    assert twin.request_dims == traced.request_dims


def test_it_shows_the_module_that_it_wraps() -> None:
    """The repr is the module's own, alone and within a larger one."""
    module = nn.Linear(4, 3)
    assert repr(trace(module)) == f"Traced({module!r})"
    assert f"(0): Traced({module!r})" in repr(nn.Sequential(trace(module)))


def test_it_is_part_of_a_larger_module() -> None:
    """Within another module it keeps the paths, in the state and in that module's own trace."""
    part = trace(Decoder().eval())
    whole = Whole(part).eval()
    assert "part.qkv.weight" in whole.state_dict()
    whole.load_state_dict(whole.state_dict())
    traced = trace(whole)
    assert torch.equal(traced(IDS), whole(IDS))
    assert {"part.embed", "part.qkv"} <= {op.module for op in traced.traced.operations}
    assert whole.part is part


@pytest.mark.parametrize(
    ("request_dims", "message"),
    [
        ({"idz": ("batch",)}, "request_dims['idz']: forward has no argument 'idz'; it has 'ids', 'mask'"),
        ({"ids": ("a", "b", "c")}, "request_dims['ids']: 3 names for 2 dimensions; give at most 2"),
        (
            {"ids": "batch"},
            "request_dims['ids']: 'batch' is no tuple of names; write ('batch', 'seq'), None for a dimension without",
        ),
        (
            {"ids": ("batch-size",)},
            "request_dims['ids']: 'batch-size' would be read as a formula; write letters, digits and underscores",
        ),
        (
            {"ids": ("a",), "mask": ("b",)},
            "request_dims['mask']: dimension 0, named 'b', always equals ids.size(0), named 'a'; give both one name",
        ),
        (
            {"ids": ("num_heads",)},
            "request_dims['ids']: dimension 0, named 'num_heads', has the name of one of the model's own sizes; choose another",
        ),
    ],
)
def test_wrong_names_are_refused_when_called(request_dims: Any, message: str) -> None:  # noqa: ANN401 - wrong on purpose
    """Names that do not fit the call are refused, each in one line."""
    with pytest.raises(InvalidInputError) as refused:
        trace(Decoder().eval(), request_dims=request_dims)(IDS, MASK)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("request_dims", "message"),
    [
        ("batch", "request_dims: 'batch' is no mapping; name forward's arguments, as {'x': ('batch', 'seq')}"),
        (("batch",), "request_dims: ('batch',) is no mapping; name forward's arguments, as {'x': ('batch', 'seq')}"),
        (5, "request_dims: 5 is no mapping; name forward's arguments, as {'x': ('batch', 'seq')}"),
        ({1: ("batch",)}, "request_dims: 1 names no argument of forward; write its name as a string"),
        ({"": ("batch",)}, "request_dims: '' names no argument of forward; write its name as a string"),
        *(
            (
                {"ids": names},
                f"request_dims['ids']: {names!r} is no tuple of names; write ('batch', 'seq'), None for a dimension without",
            )
            for names in (5, None, (5,), {"batch"}, "batch")
        ),
    ],
)
@pytest.mark.parametrize("model", [Chosen(), Chosen, None])
def test_what_are_no_names_is_refused_at_once(model: Any, request_dims: Any, message: str) -> None:  # noqa: ANN401 - wrong on purpose
    """Request dimensions of the wrong form are refused before any call, on a module, its class and as a decorator's argument."""
    with pytest.raises(InvalidInputError) as refused:
        trace(model, request_dims=request_dims)
    assert str(refused.value) == message


def test_a_dimension_that_the_model_fixes_takes_no_name() -> None:
    """A name for the hidden size is refused, with the size that fixes it."""
    with pytest.raises(InvalidInputError, match=r"dimension 1, named 'hidden', is fixed by the model \(weight.size\(1\) = 8\)"):
        trace(nn.Linear(8, 9), request_dims={"input": ("num_tokens", "hidden")})(torch.randn(3, 8))


def test_one_name_stands_for_one_size() -> None:
    """Two dimensions of unequal sizes in one call cannot have one name."""

    class Scores(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return q @ k.t()

    traced = trace(Scores(), request_dims={"q": ("n", None), "k": ("n", None)})
    message = r"^request_dims\['q'\]: dimension 0, named 'n', is 3 in this call, and k.size\(0\), named alike, 5; give two names$"
    with pytest.raises(InvalidInputError, match=message):
        traced(torch.ones(3, 8), torch.ones(5, 8))
    assert traced(torch.ones(5, 8), torch.ones(5, 8)).shape == (5, 5)
    assert {name for op in traced.traced.operations for name in op.request_dims} == {"n", "k.size(1)"}


class Scaled(nn.Module):
    """A product with a number that the caller gives."""

    def forward(self, x: Tensor, scale: float) -> Tensor:
        """Return a tensor of the input's shape."""
        return x * scale


def test_another_number_is_another_kind_of_call() -> None:
    """A float argument is part of what its operators compute: each value has a table of its own."""
    traced = trace(Scaled().eval())
    for scale in (2.0, 0.5, 2.0):
        traced(torch.ones(3, 8), scale)
    assert list(traced.tables) == ["x: float32[_, _], scale: 2.0", "x: float32[_, _], scale: 0.5"]
    first, second = (table.operations[0].signature for table in traced.tables.values())
    assert first != second


def test_only_one_call_keeps_its_arguments() -> None:
    """The most general call's arguments are kept for measuring; those of all other calls are the caller's to free."""
    traced = trace(Scaled())
    rows = {n: torch.ones(n, 8) for n in (0, 3)}
    alive = {n: weakref.ref(x) for n, x in rows.items()}
    for x in rows.values():
        traced(x, 2.0)
    del x
    rows.clear()
    gc.collect()
    assert (alive[0]() is None, alive[3]() is traced.example[0][0]) == (True, True)


def test_an_error_of_the_module_stays_its_own() -> None:
    """An input that the module itself refuses raises what it always raised, and torch logs no traceback beside it."""
    logged: list[logging.LogRecord] = []
    log, handler = logging.getLogger("torch._subclasses.fake_tensor"), logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            trace(nn.Linear(8, 8))(torch.randn(3, 7))
    finally:
        log.removeHandler(handler)
    assert (logged, log.disabled) == ([], False)


def test_arguments_keep_the_names_of_forward() -> None:
    """What a wrapper of forward takes as `*args` and `**kwargs` has the names that forward gives it."""

    class Varied(Chosen):
        def forward(self, batch: dict[str, Tensor], *others: Tensor, **named: Tensor) -> Tensor:  # type: ignore[override]
            y: Tensor = self.proj(batch["x"]).sum(0) + self.proj(others[0]).sum(0) + self.proj(named["z"]).sum(0)
            return y

    traced = trace(Varied(), request_dims={"batch.x": ("a",), "others[0]": ("b",), "named.z": ("c",)})
    traced({"x": torch.randn(3, 8)}, torch.randn(4, 8), z=torch.randn(5, 8))
    assert {name for op in traced.traced.operations for name in op.request_dims} == {"a", "b", "c"}


def test_folded_layers_are_counted() -> None:
    """With `fold_layers` the layers of a kind are traced once, and the result is the whole module's."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval(), torch.randn(3, 7, 16)
    traced = trace(model, fold_layers=True)
    assert torch.equal(traced(x), model(x))
    assert [op.count for op in traced.traced.operations if op.name == "linear1"] == [4]


def test_a_call_that_reads_values_on_the_meta_device_is_traced_all_the_same() -> None:
    """Where eager code looks at values, as attention masks of Transformers do, one line says that the trace is there."""

    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if torch.compiler.is_compiling() or x.sum().item() > 0 else -x)

    traced = trace(Masked(8, 4, device="meta"), request_dims={"x": ("rows", None)})
    with pytest.raises(TraceError, match=r"^Masked: traced, see `\.traced`; [^\n]+$"):
        traced(torch.empty(3, 8, device="meta"))
    assert {name for op in traced.traced.operations for name in op.request_dims} == {"rows"}
