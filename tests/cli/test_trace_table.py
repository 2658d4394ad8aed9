"""The table of `dooly trace`, on a small module that is really traced."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dooly.cli._batch import parse_batch
from dooly.cli._trace_table import print_operations
from dooly.report import cost_operations
from dooly.tracing import trace

if TYPE_CHECKING:
    from dooly.tracing import TracedModel

BATCH = "decode=4,context=16"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
TIMES = "×"  # noqa: RUF001 - as dimensions and counts are written


@pytest.fixture(scope="module")
def unnamed() -> TracedModel:
    """Return a model whose request dimension no batch tells."""
    module = trace(nn.Sequential(nn.Linear(8, 12, bias=False)))
    module(torch.ones(5, 8))
    return module.traced


def table(traced: TracedModel, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the terminal shows of a model."""
    print_operations(traced, cost_operations(traced, parse_batch(BATCH)), BATCH)
    return ANSI.sub("", capsys.readouterr().out)


def words(text: str) -> str:
    """Return a text in one line: folding moves words to another line and drops none."""
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100, 240])
def test_the_table_fits_and_is_complete(
    width: int, residuals: TracedModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal of any width no line is longer, and every operation, dimension and number is there uncut."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    text = table(residuals, capsys)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for operation in residuals.operations:
        assert operation.signature[:8] in text
        for dims in (tensor.shape for tensor in operation.inputs):
            assert f" {TIMES} ".join(dim.expr for dim in dims) in words(text)
    assert "dimensions set by the requests" in words(text)


def test_the_table_in_a_pipe_is_plain(residuals: TracedModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Each stage, layer and operation stands once, in the order run, with count, FLOPs and bytes; no colours are spoken of."""
    text = table(residuals, capsys)
    lines = text.splitlines()
    assert lines[0].split() == ["decoder", "count", "FLOPs", "bytes", "signature"]
    assert lines[1] == f" layers: layers.0 {TIMES} 1, layers.1 {TIMES} 1"
    heads = [line.split()[0] for line in lines if re.search(r" [0-9a-f]{8}$", line) or re.fullmatch(r" layers\.\d", line)]
    assert heads == ["embed", "layers.0", "up", "(own", "down", "(own", "layers.1", "(own", "(own", "lm_head"]
    (up,) = (line.split() for line in lines if line.startswith("  up "))
    assert up[1:7] == ["Linear", "2", "1.54", "kFLOP", "1.28", "kB"]
    assert f"step at --batch {BATCH}: 8.19 kFLOP" in text
    assert "embed.weight.size(1) = 8" in words(text)
    assert "cyan" not in text


def test_dimensions_are_told_apart_by_colour(
    residuals: TracedModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal a dimension that requests set is cyan, a configured one plain."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    print_operations(residuals, cost_operations(residuals, parse_batch(BATCH)), BATCH)
    text = capsys.readouterr().out
    assert f"\x1b[36mnum_tokens\x1b[0m {TIMES} embed.weight.size(1)" in text


def test_a_cost_beyond_the_batch_is_shown_as_its_form(unnamed: TracedModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a request dimension is none of the batch's, the cost is a question mark with the closed form below it."""
    text = table(unnamed, capsys)
    (row,) = (line for line in text.splitlines() if "Linear" in line)
    assert row.split()[2:5] == ["1", "?", "?"]
    assert f"FLOPs {unnamed.operations[0].flops}, bytes {unnamed.operations[0].bytes}" in words(text)
    assert "? depends on more than the batch tells" in text
