"""The table and the page of `dooly trace`, on a small module that is really traced."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dooly.cli._batch import parse_batch
from dooly.cli._costs import cost_operations, total_cost
from dooly.cli._flow_chart import draw_flow
from dooly.cli._trace_facts import layer_counts
from dooly.cli._trace_page import write_page
from dooly.cli._trace_table import print_operations
from dooly.tracing import TracedModel, trace

if TYPE_CHECKING:
    from pathlib import Path

    from plotly.graph_objects import Figure

BATCH = "decode=4,context=16"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
TIMES = "×"  # noqa: RUF001 - as dimensions and counts are written


class Layer(nn.Module):
    """A projection and its inverse, with a residual around both."""

    def __init__(self) -> None:
        super().__init__()
        self.intermediate_size_of_all_the_experts_together = 24
        self.up = nn.Linear(8, self.intermediate_size_of_all_the_experts_together, bias=False)
        self.down = nn.Linear(24, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, 8)."""
        inner = self.up(x).view(-1, self.intermediate_size_of_all_the_experts_together)
        return x + self.down(torch.relu(inner))


class Model(nn.Module):
    """An embedding, two equal layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.lm_head = nn.Linear(8, 32, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (tokens, 32)."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


@pytest.fixture(scope="module")
def traced() -> TracedModel:
    """Return the small model's operations, its tokens named as an engine names them."""
    module = trace(Model(), request_dims={"ids": ("num_tokens",)})
    module(torch.ones(5, dtype=torch.int64))
    return module.traced


@pytest.fixture(scope="module")
def unnamed() -> TracedModel:
    """Return a model whose request dimension no batch tells."""
    module = trace(nn.Sequential(nn.Linear(8, 12, bias=False)))
    module(torch.ones(5, 8))
    return module.traced


class Branches(nn.Module):
    """Three projections side by side; the first goes to the next line and past it, the last skips it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.inner, self.join = (nn.Linear(8, 8, bias=False) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, 8)."""
        first = self.first(x)
        return self.join(self.inner(first + self.second(x)) + first + self.third(x))


def table(traced: TracedModel, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the terminal shows of a model."""
    print_operations(traced, cost_operations(traced, parse_batch(BATCH)), BATCH)
    return ANSI.sub("", capsys.readouterr().out)


def page(traced: TracedModel, folder: Path) -> str:
    """Return the page of a model."""
    path = folder / "page.html"
    write_page(traced, cost_operations(traced, parse_batch(BATCH)), BATCH, path)
    return path.read_text(encoding="utf-8")


def words(text: str) -> str:
    """Return a text in one line: folding moves words to another line and drops none."""
    return " ".join(text.split())


def drawing(traced: TracedModel) -> Figure:
    """Return the drawing of a model, its boxes without a second line."""
    return draw_flow(traced, cost_operations(traced, parse_batch(BATCH)), lambda _row: ("", ""))


class Cells(HTMLParser):
    """Collects a page's tags with their attributes, and the text of each element by its class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.sources: list[str] = []
        self.by_class: dict[str, list[str]] = {}
        self.may_break = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember what an element loads, and its class."""
        found = dict(attrs)
        self.sources += [value for key in ("src", "href") if (value := found.get(key))]
        self.may_break = tag == "wbr"
        if tag not in {"meta", "br", "wbr"}:
            self.opened.append(found.get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        assert tag not in {"meta", "br", "wbr"}
        self.opened.pop()

    def handle_data(self, data: str) -> None:
        """Keep a text under the class of the element that it stands in, whole where a line may break within it."""
        if self.opened:
            texts = self.by_class.setdefault(self.opened[-1], [])
            texts.append(texts.pop() + data if self.may_break else data)


def test_costs_are_the_closed_forms_by_value(traced: TracedModel) -> None:
    """A product of 4 tokens, 8 by 24, takes twice their product in FLOPs and moves each operand and the result once."""
    rows = cost_operations(traced, parse_batch(BATCH))
    (up,) = (row for row in rows if row.operation.module == "layers.0.up")
    assert up.cost is not None
    assert (up.cost.flops, up.cost.size_bytes) == (2 * 4 * 8 * 24, 4 * (8 * 24 + 4 * 8 + 4 * 24))
    assert up.cost.intensity == up.cost.flops / up.cost.size_bytes
    assert total_cost(rows).flops == 2 * (2 * (2 * 4 * 8 * 24)) + 2 * 4 * 8 * 32


@pytest.mark.parametrize("width", [80, 100, 240])
def test_the_table_fits_and_is_complete(
    width: int, traced: TracedModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal of any width no line is longer, and every operation, dimension and number is there uncut."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    text = table(traced, capsys)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for operation in traced.operations:
        assert operation.signature[:8] in text
        for dims in (tensor.shape for tensor in operation.inputs):
            assert f" {TIMES} ".join(dim.expr for dim in dims) in words(text)
    assert "dimensions set by the requests" in words(text)


def test_the_table_in_a_pipe_is_plain(traced: TracedModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Each stage, layer and operation stands once, in the order run, with count, FLOPs and bytes; no colours are spoken of."""
    text = table(traced, capsys)
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
    traced: TracedModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal a dimension that requests set is cyan, a configured one plain."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    print_operations(traced, cost_operations(traced, parse_batch(BATCH)), BATCH)
    text = capsys.readouterr().out
    assert f"\x1b[36mnum_tokens\x1b[0m {TIMES} embed.weight.size(1)" in text


def test_a_cost_beyond_the_batch_is_shown_as_its_form(unnamed: TracedModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a request dimension is none of the batch's, the cost is a question mark with the closed form below it."""
    text = table(unnamed, capsys)
    (row,) = (line for line in text.splitlines() if "Linear" in line)
    assert row.split()[2:5] == ["1", "?", "?"]
    assert f"FLOPs {unnamed.operations[0].flops}, bytes {unnamed.operations[0].bytes}" in words(text)
    assert "? depends on more than the batch tells" in text


def test_rows_of_plain_pytorch_are_the_padded_requests() -> None:
    """Where a forward takes rows of tokens, a batch is its requests as rows, each as long as the longest."""
    module = trace(nn.Linear(8, 12, bias=False), request_dims={"input": ("batch", "seq")})
    module(torch.ones(5, 7, 8))
    (row,) = cost_operations(module.traced, parse_batch("prefill=16,requests=2+decode=1,context=64"))
    assert row.cost is not None
    assert row.cost.flops == 2 * (3 * 16) * 8 * 12


def test_the_page_stands_alone(traced: TracedModel, tmp_path: Path) -> None:
    """The page is well formed, carries its script and loads nothing from elsewhere."""
    text = page(traced, tmp_path)
    cells = Cells(text)
    assert cells.opened == []
    assert cells.sources == []
    assert text.count("Plotly.newPlot(") >= 2
    assert "$" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_page_shows_every_dimension_by_origin(traced: TracedModel, tmp_path: Path) -> None:
    """Configured dimensions show name and value, request dimensions their name, each in a class that the legend has."""
    cells = Cells(page(traced, tmp_path))
    assert set(cells.by_class["request"]) == {"num_tokens", "request: set by the requests"}
    assert {"embed.weight.size(1)", "intermediate_size_of_all_the_experts_together"} <= set(cells.by_class["config"])
    assert {"=8", "=24", "=32"} <= set(cells.by_class["value"])
    assert cells.by_class["mixed"] == ["mixed: set by both"]
    assert {"1.54 kFLOP", "1.28 kB", "1.2"} <= set(cells.by_class["number"])


def test_dimensions_are_told_apart_without_colour(traced: TracedModel, tmp_path: Path) -> None:
    """In print and to colour-blind readers the three origins differ too: each has a typeface of its own."""
    styles = dict(re.findall(r"^\.(config|request|mixed) \{ color: #\w+;(.*) \}$", page(traced, tmp_path), flags=re.MULTILINE))
    assert len(styles) == len(set(styles.values())) == 3


def test_numbers_stand_before_shapes(traced: TracedModel, tmp_path: Path) -> None:
    """Shapes may be wide; count, FLOPs and bytes stand before them, where no window cuts them off."""
    text = page(traced, tmp_path)
    heads = re.findall(r"<th class=\"(?:text|number)\">(.*?)</th>", text)
    assert heads == ["operation", "count", "FLOPs", "bytes", "FLOP/B", "inputs", "outputs", "signature"]
    (row,) = re.findall(r"<tr><td>layers\.<wbr>0\.up<br>.*?</tr>", text)
    cells = [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row)]
    assert cells[1:5] == ["2", "1.54 kFLOP", "1.28 kB", "1.2"]
    assert cells[6] == f"float32 num_tokens {TIMES} intermediate_size_of_all_the_experts_together=24"


def test_a_box_tells_its_sizes_in_short_lines(traced: TracedModel, tmp_path: Path) -> None:
    """The drawing cuts what leaves it: tensors and closed forms are folded, and every dimension is still there."""
    (up,) = (op for op in traced.operations if op.module == "layers.0.up")
    wide = replace(up.inputs[0], shape=up.outputs[0].shape * 3)
    model = replace(traced, operations=tuple(replace(op, inputs=(wide,)) if op is up else op for op in traced.operations))
    hovers = re.findall(r'"hovertext":("\\u003cb\\u003elayers\.0\.up(?:[^"\\]|\\.)*")', page(model, tmp_path))
    lines = json.loads(hovers[0]).split("<br>")
    plain = [re.sub(r"<.*?>", "", line) for line in lines]
    assert max(map(len, plain)) <= 80
    assert "".join(plain).count("num_tokens") >= 4
    assert "".join(plain).count("_together=24") == 4


def test_names_are_escaped(traced: TracedModel, tmp_path: Path) -> None:
    """A name with characters of HTML is shown as it is."""
    text = page(replace(traced, model="a<b>&c"), tmp_path)
    assert "<title>a&lt;b&gt;&amp;c: operations of one step</title>" in text


def test_the_drawing_has_a_box_for_each_call_and_a_way_for_each_edge(traced: TracedModel) -> None:
    """Each call is a box below what it reads; layers are framed with their count; a residual goes around on the right."""
    layout, (ways, down, around) = drawing(traced).layout, drawing(traced).data
    boxes = [note for note in layout.annotations if note.width]
    assert len(boxes) == sum(len(op.calls) for op in traced.operations) == 10
    assert [note.text for note in layout.annotations if not note.width] == ["<b>layers.0</b><br>once", "<b>layers.1</b><br>once"]
    assert len(layout.shapes) == 2
    assert len(down.x) + len(around.x) == list(ways.x).count(None) == len(traced.edges) == 11
    assert len(around.x) == 2
    assert [note.y for note in sorted(boxes, key=lambda note: -note.y)] == [-float(depth) for depth in range(10)]
    assert all(box.x + box.width / 2 < layout.width for box in boxes)


def test_no_way_passes_behind_a_box() -> None:
    """A way that went behind a box would seem to end there: each runs outside of every box, from one's edge to another's."""
    module = trace(Branches(), request_dims={"x": ("num_tokens",)})
    module(torch.ones(5, 8))
    figure = drawing(module.traced)
    layout, ways = figure.layout, figure.data[0]
    column, row = (
        size / (axis.range[1] - axis.range[0]) for size, axis in ((layout.width, layout.xaxis), (layout.height, layout.yaxis))
    )
    boxes = [(note.x, note.y, (note.width + 10) / 2 / column, (note.height + 10) / 2 / row) for note in layout.annotations]
    assert len({y for _, y, _, _ in boxes}) < len(boxes)
    points = list(zip(ways.x, ways.y, strict=True))
    for (x0, y0), (x1, y1) in ((start, end) for start, end in pairwise(points) if None not in (*start, *end)):
        for part in (step / 100 for step in range(101)):
            x, y = x0 + part * (x1 - x0), y0 + part * (y1 - y0)
            assert all(abs(x - left) > width - 1e-3 or abs(y - top) > height - 1e-3 for left, top, width, height in boxes)


def test_repeated_layers_show_their_count(traced: TracedModel) -> None:
    """A layer that stands for several is drawn once with its count."""
    folded = tuple(
        replace(op, placements=tuple((m, 79 if m.startswith("layers.1") else n) for m, n in op.placements))
        for op in traced.operations
    )
    model = replace(traced, operations=folded)
    assert layer_counts(model, "decoder") == {"layers.0": 1, "layers.1": 79}
    texts = [note.text for note in drawing(model).layout.annotations if not note.width]
    assert texts == ["<b>layers.0</b><br>once", f"<b>layers.1</b><br>{TIMES} 79"]


def test_a_table_without_calls_has_a_page(traced: TracedModel, tmp_path: Path) -> None:
    """Operations of before calls were kept make a page with its table, and no boxes."""
    old = replace(traced, operations=tuple(replace(op, calls=()) for op in traced.operations))
    assert "intermediate_size_of_all_the_experts_together" in page(old, tmp_path)
    assert drawing(old).layout.annotations == ()
