from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dooly.errors import InvalidInputError
from dooly.trace import TracedModel, trace


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
        {"dtype": "int64", "shape": [{"expr": "args[0].size(0)", "origin": "request"}], "is_parameter": False},
    ]


def test_another_schema_is_refused(model: TracedModel) -> None:
    """A table of a schema that this version does not know is an error with a next step."""
    for schema in (2, None, "1"):
        with pytest.raises(InvalidInputError, match=rf"^trace: schema {schema!r} is not 1; trace the model again"):
            TracedModel.from_json(model.to_json() | {"schema": schema})
