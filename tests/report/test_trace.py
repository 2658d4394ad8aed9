"""The page of a traced model, on a small module that is really traced."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from dooly.batch import Batch
from dooly.report import cost_operations, write_trace

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.tracing import TracedModel

BATCH = Batch((1,) * 4, (16,) * 4)
TIMES = "×"  # noqa: RUF001 - as dimensions and counts are written


def page(traced: TracedModel, folder: Path) -> str:
    """Return the page of a model."""
    path = folder / "page.html"
    write_trace(traced, cost_operations(traced, BATCH), "decode=4,context=16", path)
    return path.read_text(encoding="utf-8")


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


def test_the_page_stands_alone(residuals: TracedModel, tmp_path: Path) -> None:
    """The page is well formed, carries its script and loads nothing from elsewhere."""
    text = page(residuals, tmp_path)
    cells = Cells(text)
    assert cells.opened == []
    assert cells.sources == []
    assert text.count("Plotly.newPlot(") >= 2
    assert "$" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_page_shows_every_dimension_by_origin(residuals: TracedModel, tmp_path: Path) -> None:
    """Configured dimensions show name and value, request dimensions their name, each in a class that the legend has."""
    cells = Cells(page(residuals, tmp_path))
    assert set(cells.by_class["request"]) == {"num_tokens", "request: set by the requests"}
    assert {"embed.weight.size(1)", "intermediate_size_of_all_the_experts_together"} <= set(cells.by_class["config"])
    assert {"=8", "=24", "=32"} <= set(cells.by_class["value"])
    assert cells.by_class["mixed"] == ["mixed: set by both"]
    assert {"1.54 kFLOP", "1.28 kB", "1.2"} <= set(cells.by_class["number"])


def test_dimensions_are_told_apart_without_colour(residuals: TracedModel, tmp_path: Path) -> None:
    """In print and to colour-blind readers the three origins differ too: each has a typeface of its own."""
    styles = dict(re.findall(r"^\.(config|request|mixed) \{ color: #\w+;(.*) \}$", page(residuals, tmp_path), flags=re.MULTILINE))
    assert len(styles) == len(set(styles.values())) == 3


def test_numbers_stand_before_shapes(residuals: TracedModel, tmp_path: Path) -> None:
    """Shapes may be wide; count, FLOPs and bytes stand before them, where no window cuts them off."""
    text = page(residuals, tmp_path)
    heads = re.findall(r"<th class=\"(?:text|number)\">(.*?)</th>", text)
    assert heads == ["operation", "count", "FLOPs", "bytes", "FLOP/B", "inputs", "outputs", "signature"]
    (row,) = re.findall(r"<tr><td>layers\.<wbr>0\.up<br>.*?</tr>", text)
    cells = [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row)]
    assert cells[1:5] == ["2", "1.54 kFLOP", "1.28 kB", "1.2"]
    assert cells[6] == f"float32 num_tokens {TIMES} intermediate_size_of_all_the_experts_together=24"


def test_a_box_tells_its_sizes_in_short_lines(residuals: TracedModel, tmp_path: Path) -> None:
    """The drawing cuts what leaves it: tensors and closed forms are folded, and every dimension is still there."""
    (up,) = (op for op in residuals.operations if op.module == "layers.0.up")
    wide = replace(up.inputs[0], shape=up.outputs[0].shape * 3)
    model = replace(residuals, operations=tuple(replace(op, inputs=(wide,)) if op is up else op for op in residuals.operations))
    hovers = re.findall(r'"hovertext":("\\u003cb\\u003elayers\.0\.up(?:[^"\\]|\\.)*")', page(model, tmp_path))
    lines = json.loads(hovers[0]).split("<br>")
    plain = [re.sub(r"<.*?>", "", line) for line in lines]
    assert max(map(len, plain)) <= 80
    assert "".join(plain).count("num_tokens") >= 4
    assert "".join(plain).count("_together=24") == 4


def test_names_are_escaped(residuals: TracedModel, tmp_path: Path) -> None:
    """A name with characters of HTML is shown as it is."""
    text = page(replace(residuals, model="a<b>&c"), tmp_path)
    assert "<title>a&lt;b&gt;&amp;c: operations of one step</title>" in text


def test_a_table_without_calls_has_a_page(residuals: TracedModel, tmp_path: Path) -> None:
    """Operations of before calls were kept make a page with its table."""
    old = replace(residuals, operations=tuple(replace(op, calls=()) for op in residuals.operations))
    assert "intermediate_size_of_all_the_experts_together" in page(old, tmp_path)
