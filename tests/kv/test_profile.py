"""What selecting takes on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from dbstore import Store  # noqa: E402 - after the skip
from dooly.cli import main  # noqa: E402
from dooly.engines import find_model  # noqa: E402
from dooly.kv_policy import KVPolicy  # noqa: E402
from dooly.predict import load_latency_model, selection_latency  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def test_a_measured_selection_counts_as_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `dooly kv profile` measures of one layer, simulations on such a device take for all layers, and others do not."""
    db, model = tmp_path / "db", find_model("smollm2-135m")
    command = ["kv", "profile", "smollm2-135m", "--db", str(db), "--policy", "snapkv", "--budget", "0.5"]
    assert main([*command, "--num-tokens", "128,192,256"]) == 0
    assert "snapkv at 0.5, as fitted to what was measured" in " ".join(capsys.readouterr().out.split())
    policy, store = KVPolicy("snapkv", 0.5), Store.open(str(db))
    own = selection_latency(store, policy, (9, 3, 64, 576))
    assert own is not None
    price = load_latency_model(model=model, hardware="h200").selections
    here = replace(price, store=store, device=own.environment.device)
    assert here.latency_ns(policy, 192) == (pytest.approx(30 * 1e9 * own(num_tokens=192).seconds), "measured")
    assert replace(price, store=store).latency_ns(policy, 192)[1] == "estimated"
    assert here.latency_ns(KVPolicy("snapkv", 0.25), 192)[1] == "estimated"
    assert main([*command[:-1], "0.2", "--num-tokens", "128"]) == 2
    assert "0.2 of 128 tokens are 25, fewer than the window" in capsys.readouterr().err
    assert main([*command[:-4], "--policy", "critiprefill", "--budget", "0.2"]) == 2
    assert "give a policy that drops tokens" in capsys.readouterr().err
