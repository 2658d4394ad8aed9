"""Real servers beside both predictors: which rows are judged, and what an error is."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "silicon_truth.py"
ROW = {"system": "h200_sxm", "isl": 64, "osl": 16, "batch_size": 2, "tp_size": 8, "moe_tp_size": 1, "moe_ep_size": 1}
REAL = {"silicon_ttft_ms": 10.0, "silicon_tpot_ms": 5.0}


@pytest.fixture(scope="module")
def silicon(load_script: Callable[[str], Any]) -> ModuleType:
    """The script as a module."""
    module: ModuleType = load_script("benchmarks/silicon_truth.py")
    return module


def test_rows_are_judged_whose_configuration_is_there(silicon: ModuleType, tmp_path: Path) -> None:
    """A model that is neither listed nor in the folder is left out; a row that the peer does not answer has no number of its."""
    rows = [ROW | REAL | {"id": model, "model_path": model} for model in ("meta-llama/Llama-3.1-70B", "MiniMaxAI/MiniMax-M2.5")]
    file = tmp_path / silicon.ROWS
    file.parent.mkdir()
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (found,) = silicon.judge(tmp_path, None)
    assert (found["id"], found["real"], found["peer"]) == (rows[0]["id"], {"ttft": 10.0, "tpot": 5.0}, None)
    assert 5 < found["ours"]["tpot"] < 15  # 70 GB over eight ranks, and 161 collectives
    assert silicon.errors([found], "peer", "ttft") is None


def test_errors_are_relative_to_the_real_server(silicon: ModuleType) -> None:
    """Mean absolute error, and bias with its sign."""
    rows = [{"real": {"ttft": 10.0}, "ours": {"ttft": predicted}} for predicted in (9.0, 13.0)]
    assert silicon.errors(rows, "ours", "ttft") == pytest.approx({"rows": 2, "mape": 0.2, "bias": 0.1})


def test_a_servers_own_time_is_learnt_on_another_model(silicon: ModuleType) -> None:
    """Two numbers by the rows of short prompts, added to the other model's TTFT alone."""
    llama, gpt = "meta-llama/Llama-3.1-70B", "openai/gpt-oss-120b"
    rows = [
        {"key": (model, "8", prompt, "1024", users), "ours": {"ttft": 50.0, "tpot": 5.0}, "real": {"ttft": real, "tpot": 5.0}}
        for model, prompt, users, real in (
            (gpt, "1024", "4", 50 + 8 + 2 * 3.0),
            (gpt, "1024", "32", 50 + 8 + 5 * 3.0),
            (gpt, "8192", "32", 900.0),
            (llama, "8192", "16", 70.0),
        )
    ]
    assert silicon.with_server_time(rows)[llama] == pytest.approx((8, 3))
    assert rows[-1]["served"] == pytest.approx({"ttft": 50 + 8 + 4 * 3, "tpot": 5.0})


def test_the_peers_predictions_are_of_rows_that_differ(silicon: ModuleType) -> None:
    """Each row once, in milliseconds above zero."""
    rows = list(csv.DictReader(silicon.PEER.read_text().splitlines()))
    assert len({row["id"] for row in rows}) == len(rows) > 100
    assert all(float(row["ttft"]) > float(row["tpot"]) > 0 for row in rows)
