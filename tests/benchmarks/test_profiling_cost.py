"""What the page on profiling's cost says is what the benchmark found, and its accounts add up."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import numpy.typing as npt

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The results that are kept."""
    result: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "gpu" / "profiling-cost.json").read_text())
    return result


def test_the_page_tells_the_results(found: dict[str, Any]) -> None:
    """Seconds, savings and errors of the page's tables are those of the file."""
    page = (ROOT / "docs" / "profiling-cost.md").read_text()
    split, errors = found["split_s"], found["errors"]
    for name, seconds in split.items():
        assert f"{seconds:.1f}" in page, name
        if name != "each alone":
            assert f"{1 - seconds / split['each alone']:.1%}".replace("%", " %") in page, name
    for way in ("interpolated", "by itself", "adaptive", "dooly"):
        assert f"{100 * errors[way]['median']:.1f} %, {100 * errors[way]['p90']:.1f} %" in page, way
    for name, row in found["families"].items():
        assert f"{row['drawn']:,} of {row['points']:,}" in page, name
    for name, row in found["unseen"].items():
        assert f"{100 * row['share']:.1f} %" in page, name
    for row in found["sensitivity"]:
        assert f"{100 * row['saved']:.1f}" in page, row


def test_the_accounts_add_up(found: dict[str, Any]) -> None:
    """Models and families sum to the totals, each step of the split saves, and every order saves at least 80 %."""
    split = found["split_s"]
    assert sum(row["alone_s"] for row in found["models"].values()) == pytest.approx(split["each alone"])
    assert sum(row["dooly_s"] for row in found["models"].values()) == pytest.approx(split["and by families"])
    assert sum(row["dooly_s"] for row in found["families"].values()) == pytest.approx(split["and by families"])
    assert list(split.values()) == sorted(split.values(), reverse=True)
    assert all(run["saved"] >= 0.8 for run in found["orders"])
    assert found["errors"]["dooly"]["median"] <= found["errors"]["interpolated"]["median"]
    assert found["errors"]["dooly"]["p90"] <= found["errors"]["interpolated"]["p90"]


def test_the_page_tells_what_vidurs_grid_costs() -> None:
    """Seconds, points and errors on Vidur's grid, and what each model costs as the last one, are those of the file."""
    file = ROOT / "benchmarks" / "results" / "gpu" / "profiling-vidur-a100.json"
    found: dict[str, Any] = json.loads(file.read_text())
    page = (ROOT / "docs" / "profiling-cost.md").read_text()
    ours, thinned = found["costs"]["ours"], found["thinned"]
    for seconds in (ours["alone_s"], ours["shared_s"], ours["dooly_s"], thinned["alone_s"], thinned["shared_s"]):
        assert f"{seconds:,.1f} |" in page.replace("**", ""), seconds
    assert f"{1 - ours['dooly_s'] / ours['alone_s']:.1%} less than Vidur's grid".replace("%", " %") in page
    assert f"it is {1 - ours['dooly_s'] / thinned['alone_s']:.1%} less**".replace("%", " %") in page
    for errors in (*found["errors"].values(), thinned["errors"]):
        assert f"{100 * errors['median']:.1f} %, {100 * errors['p90']:.1f} %" in page
    for row in found["last"].values():
        if row["new_operations"]:
            errors = row["errors"]["dooly"]
            told = f"| {row['new_operations']} | {100 * row['dooly_s'] / row['alone_s']:.1f} % |"
            assert told in page, row
            assert f"{100 * errors['median']:.1f} %, {100 * errors['p90']:.1f} %" in page, row
    assert sum(row["drawn"] for row in found["families"].values()) == found["points"]["dooly"]


def test_what_nobody_drew_decides_on_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other latencies at all points that were not drawn, half of them a quarter, and the sampler draws the same."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    cost, sweeps = importlib.import_module("profiling_cost"), importlib.import_module("profiling_sweeps")
    rng, sizes = np.random.default_rng(0), np.log(np.arange(1.0, 61.0))[:, None]
    roofline_ns = 1e6 + 1e5 * np.exp(sizes[:, 0])
    held = np.arange(60) % 5 == 0

    def drawn(latency_ns: npt.NDArray[np.float64]) -> list[int]:
        store = cost.Store()
        store.add({("linear", (1.0,)): sweeps.Sweep("linear", sizes, sizes, roofline_ns, latency_ns, held)})
        (places,) = store.drawn.values()
        return list(places)

    latency_ns = roofline_ns * rng.choice([1.1, 1.3], 60)
    places = drawn(latency_ns)
    left = ~np.isin(np.arange(60), places)
    assert 3 <= len(places) < 48
    assert drawn(np.where(left & (np.arange(60) % 2 == 0), latency_ns / 4, latency_ns)) == places


def test_what_was_cut_off_is_no_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A profile of which the ledger has the start alone is refused; one that ended is not run again."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    measured = importlib.import_module("profiling_measured")
    model = measured.find_model("smollm2-135m")
    (tmp_path / "seconds.json").write_text(json.dumps({"alone/smollm2-135m": 12.5, "together/smollm2-135m": None}))
    assert measured._profiled(model, tmp_path, "alone", None, 0.0) == 12.5
    with pytest.raises(SystemExit, match="together/smollm2-135m was cut off"):
        measured._profiled(model, tmp_path, "together", None, 0.03)
