from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from dooly.errors import InvalidInputError
from dooly.tracing import TracedModel, trace


@pytest.fixture(scope="module")
def model() -> TracedModel:
    """Return the table of a small module."""
    traced = trace(nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 12), nn.Linear(12, 12)))
    traced(torch.ones(5, dtype=torch.int64))
    return traced.traced


def test_json_keeps_everything(model: TracedModel) -> None:
    """A table that went through JSON text equals the one that was written."""
    assert TracedModel.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_json_has_the_promised_form(model: TracedModel) -> None:
    """The keys that users rely on are there, with a value for configured dimensions only."""
    data = model.to_json()
    assert data.keys() == {"schema", "model", "environment", "operations"}
    operation = data["operations"][0]
    promised = {"signature", "name", "module", "stage", "stateful", "count", "inputs", "flops", "bytes"}
    assert promised <= operation.keys()
    assert operation["inputs"] == [
        {
            "dtype": "float32",
            "shape": [
                {"expr": "0.weight.size(0)", "origin": "config", "value": 16},
                {"expr": "0.weight.size(1)", "origin": "config", "value": 8},
            ],
            "is_parameter": True,
            "parameter": "0.weight",
        },
        {"dtype": "int64", "shape": [{"expr": "input.size(0)", "origin": "request"}], "is_parameter": False},
    ]


def test_another_schema_is_refused(model: TracedModel) -> None:
    """A table of a schema that this version does not know is an error with a next step."""
    for schema in (2, None, "1"):
        with pytest.raises(InvalidInputError, match=rf"^trace: schema {schema!r} is not 1; trace the model again"):
            TracedModel.from_json(model.to_json() | {"schema": schema})


class Stack(nn.Module):
    """Two equal layers, each with a residual around its projection."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, 8)."""
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(x)


def test_rows_that_merge_calls_keep_each_ones_flow() -> None:
    """Two additions of one signature share a row, but each is a call of its own, and edges lead from call to call."""
    traced = trace(Stack())
    traced(torch.ones(3, 8))
    (first,), (early, late), (second,), (norm,) = (op.calls for op in traced.traced.operations)
    assert set(traced.traced.edges) == {
        (first.name, early.name),
        (early.name, second.name),
        (second.name, late.name),
        (early.name, late.name),
        (late.name, norm.name),
    }


def test_stages_join_where_one_ends_and_the_next_begins(model: TracedModel) -> None:
    """What reads nothing of its own stage reads the result of the stage before; a call left out has no edges."""
    decoder = model.operations
    head = tuple(
        replace(op, stage="logits", calls=tuple(replace(c, name=f"l{c.name}", feeds_from=()) for c in op.calls)) for op in decoder
    )
    assert [source for source, _ in replace(model, operations=(*decoder, head[0])).edges] == [
        "decoder.0",
        "decoder.1",
        "decoder.2",
    ]
    assert replace(model, operations=decoder[:1] + decoder[2:]).edges == ()


def test_a_table_of_before_calls_were_kept_is_read(model: TracedModel) -> None:
    """JSON without calls, as older stores hold it, makes the same table without edges."""
    data = model.to_json()
    for operation in data["operations"]:
        del operation["calls"]
    old = TracedModel.from_json(data)
    assert old.edges == ()
    assert old == replace(model, operations=tuple(replace(op, calls=()) for op in model.operations))


def test_calls_and_placements_go_together(model: TracedModel) -> None:
    """An operation with other placements than calls is refused."""
    operation = model.operations[0]
    with pytest.raises(InvalidInputError, match="1 calls but 2 placements; give one of each"):
        replace(operation, placements=(("a", 1), ("b", 1)))
