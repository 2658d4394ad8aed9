"""What selecting takes on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from dbstore import Store  # noqa: E402 - after the skip
from dooly.catalog import count_disturbed, describe_module_environment, read_selection, write_selection  # noqa: E402
from dooly.cli import main  # noqa: E402
from dooly.engines import find_model  # noqa: E402
from dooly.kv_policy import HeadSizes, KVPolicy, SelectedPrompt  # noqa: E402
from dooly.predict import load_latency_model, selection_latency  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def test_a_measured_selection_counts_as_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `dooly kv profile` measures of one layer, simulations on such a device take for all layers, and others do not."""
    db, model = tmp_path / "db", find_model("smollm2-135m")
    command = ["kv", "profile", "smollm2-135m", "--db", str(db), "--policy", "snapkv", "--budget", "0.5"]
    assert main([*command, "--num-tokens", "128,192,256"]) == 0
    policy, store = KVPolicy("snapkv", 0.5), Store.open(str(db))
    environment = describe_module_environment(torch.nn.Identity())
    ((traced, _),) = read_selection(store, policy, HeadSizes(9, 3, 64, 576))
    counts = [count_disturbed(store.read(op.signature, environment.digest)) for op in traced.operations]
    disturbed, points = map(sum, zip(*counts, strict=True))
    told = f"; other work disturbed {disturbed} of {points} points: measure again" if disturbed else ""
    assert f"snapkv at 0.5, as fitted to what was measured{told}" in (out := " ".join(capsys.readouterr().out.split()))
    assert ("disturbed" in out) == bool(disturbed)
    own = selection_latency(store, policy, HeadSizes(9, 3, 64, 576), environment)
    assert own is not None
    price = load_latency_model(model=model, hardware="h200").selections
    here = replace(price, store=store, environment=replace(environment, dtype="float32"))
    assert here.latency(policy, 192) == (pytest.approx(30 * 1e9 * own(num_tokens=192).seconds), "measured", False)
    assert replace(price, store=store).latency(policy, 192).source == "estimated"
    assert here.latency(KVPolicy("snapkv", 0.25), 192).source == "estimated"
    in_bfloat16 = replace(here, environment=replace(environment, dtype="bfloat16"))
    assert in_bfloat16.latency(policy, 192) == (here.latency(policy, 192).ns, "estimated", False)
    # Lengths that were not measured are told, and count as extrapolated.
    latency = load_latency_model(model=model, hardware="h200")
    latency.selections = here
    for num_tokens, is_beyond in ((256, False), (131_072, True)):
        latency.reset_account()
        selecting_ns = latency.selection_ns(policy, [SelectedPrompt(num_tokens)])
        assert latency.extrapolated_ns == pytest.approx(selecting_ns * is_beyond, abs=1)
        assert latency.extrapolated_share == (pytest.approx(1) if is_beyond else 0)
    assert main([*command[:-1], "0.2", "--num-tokens", "128"]) == 2
    assert "0.2 of 128 tokens are 25, fewer than the window" in capsys.readouterr().err
    assert main([*command[:-4], "--policy", "critiprefill", "--budget", "0.2"]) == 2
    assert "give a policy that drops tokens" in capsys.readouterr().err


def test_a_selection_is_taken_from_where_the_model_is(tmp_path: Path) -> None:
    """Of several environments the device's counts, and of several of one machine the one most alike."""
    db, policy, sizes = str(tmp_path / "db"), KVPolicy("snapkv", 0.5), HeadSizes(9, 3, 64, 576)
    command = ["kv", "profile", "smollm2-135m", "--db", db, "--policy", "snapkv", "--budget", "0.5"]
    assert main([*command, "--num-tokens", "128,192"]) == 0
    store, here = Store.open(db, "a"), describe_module_environment(torch.nn.Identity())
    ((traced, digest),) = read_selection(store, policy, sizes)
    assert digest == here.digest
    records = [record for key in store.keys() if key[1] == digest for record in store.read(*key)]  # noqa: SIM118 - no mapping
    # The same measured elsewhere, and here with other threads.
    others = [replace(here, device="another"), replace(here, num_threads=64), replace(here, num_threads=128)]
    for other in others:
        store.write_document("environments", other.digest, other.to_json())
        store.write(*(replace(record, environment=other.digest) for record in records))
        write_selection(store, policy, sizes, traced, other)
    for environment in (here, *others):
        found = selection_latency(store, policy, sizes, environment)
        assert found is not None
        assert found.environment == environment
    assert selection_latency(store, policy, sizes, replace(here, device="a third")) is None
