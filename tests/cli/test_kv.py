"""`dooly kv error`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("transformers")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model with little attention."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "vocab_size": 64}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2, "intermediate_size": 64}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    return tmp_path / "small"


def test_errors_as_table_json_and_page(dooly: Callable[..., Outcome], small: Path, tmp_path: Path) -> None:
    """All policies by default, or those that are named; JSON holds each seed's by layer and head; the page stands alone."""
    files = ("--json", tmp_path / "errors.json", "--html", tmp_path / "errors.html")
    done = dooly("kv", "error", small, "--num-tokens", "100,200", "--budget", "0.5,1", "--seeds", 2, *files)
    assert done.code == 0, done.err
    assert all(name in done.out for name in ("snapkv", "layer-defensivekv", "laprox", "critiprefill", "layer 1"))
    assert re.search(r"critiprefill +. +100 +(. +- *){4}", done.out)
    assert "critiprefill computes 100 tokens whole" in " ".join(done.out.split())
    document = json.loads((tmp_path / "errors.json").read_text())
    assert len(document["errors"]) == 8 * 2 * 2 * 2
    first = document["errors"][0]
    assert (first["policy"], first["budget"], first["num_tokens"], first["seed"]) == ("snapkv", 0.5, 100, 0)
    assert [len(layer["heads"]) for layer in first["layers"]] == [2, 2]
    assert 0 < first["output"] <= first["worst"]
    page = (tmp_path / "errors.html").read_text()
    assert all(name in page for name in ("snapkv", "laprox", 'id="heads-200"'))
    assert re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page) == []


@pytest.mark.parametrize("command", [("kv", "error"), ("kv", "profile"), ("simulate",), ("search",)])
def test_help_says_what_laprox_is(dooly: Callable[..., Outcome], command: tuple[str, ...]) -> None:
    """LaProx is after its paper's abstract, wherever it can be asked for."""
    assert "laprox" in (told := " ".join(re.sub("[│|]", " ", dooly(*command, "--help").out).split()))
    assert "after its paper's abstract" in told


def test_json_on_stdout_has_no_table(dooly: Callable[..., Outcome], small: Path) -> None:
    """`--json -` prints the document alone; by default as many layers as the model has, up to four."""
    done = dooly("kv", "error", small, "--policy", "adakv", "--budget", 0.5, "--num-tokens", 100, "--json", "-")
    assert {each["policy"] for each in json.loads(done.out)["errors"]} == {"adakv"}
    assert len(json.loads(done.out)["errors"][0]["layers"]) == 2


def test_progress_counts_errors(dooly: Callable[..., Outcome], small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log hears of each policy at each budget, not of whole texts alone."""
    monkeypatch.setattr("dooly.cli._output._LINE_EVERY_S", 0)
    done = dooly("kv", "error", small, "--policy", "SnapKV,adakv", "--budget", "0.5,1", "--num-tokens", 100, "--seeds", 1)
    assert re.findall(r"small: attention errors: (\d) of 4", done.err) == ["0", "1", "2", "3", "4"]


def test_windows_are_told(dooly: Callable[..., Outcome], small: Path) -> None:
    """Policies leave layers with a sliding window as they are, and errors are none of theirs."""
    words = ("--policy", "snapkv", "--budget", 0.5, "--num-tokens", 100, "--seeds", 1)
    assert "sliding window" not in dooly("kv", "error", small, *words).err
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"sliding_window": 64}))
    assert "dooly: note: small: layers with a sliding window stay as they are" in dooly("kv", "error", small, *words).err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "h2o"), "--policy: 'h2o' is not one of snapkv, adakv"),
        (("--budget", "1.5"), "--budget: 1.5 does not lie above 0 and up to 1"),
        (("--budget", "half"), "--budget: 'half' must be numbers"),
        (("--budget", "0.1", "--num-tokens", "100"), "--budget: 0.1 of 100 tokens are 10, fewer than the window of 32"),
        (("--budget", "0.5,0.1", "--num-tokens", "400,100"), "--budget: 0.1 of 100 tokens are 10, fewer than the window of 32"),
        (("--policy", "critiprefill", "--budget", "0.1", "--num-tokens", "200"), "0.1 of 200 tokens are less than a block of 32"),
        (("--seeds", "0"), "--seeds: 0 is not at least 1"),
        (("--layers", "0"), "--layers: 0 is not within 1..2, the layers of small"),
        (("--layers", "99"), "--layers: 99 is not within 1..2, the layers of small"),
    ],
)
def test_wrong_input_is_one_line(
    dooly: Callable[..., Outcome], small: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    """What cannot be asked ends with 2 and one line that says why, before anything is computed."""
    monkeypatch.setattr("dooly.kv.capture_attention", None)
    done = dooly("kv", "error", small, *options)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--policy", "nope"), "--policy: 'nope' is not one of snapkv, adakv"),
        (("--budget", "1.5"), "--budget: 1.5 does not lie above 0 and up to 1"),
        (("--num-tokens", "0"), "--num-tokens: 0 is not at least 1"),
        (("--tensor-parallel-size", "3"), "--tensor-parallel-size: 3 ranks cannot share 2 heads"),
    ],
)
def test_profile_names_its_own_options(
    dooly: Callable[..., Outcome], small: Path, tmp_path: Path, changed: tuple[str, ...], message: str
) -> None:
    """What cannot be measured ends with 2 and one line that names an option of the command."""
    done = dooly("kv", "profile", small, "--db", tmp_path / "db", "--policy", "snapkv", "--budget", "0.5", *changed)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
