"""`dooly db export --format`: files of other tools, from a device that ships and from a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = ("--max-model-len", "64", "--max-num-batched-tokens", "16", "--max-num-seqs", "2")
MODEL = ("--model", "llama-3.1-8b")


@pytest.mark.parametrize(
    ("tool", "output", "files"),
    [
        (
            "llmservingsim",
            "bf16",
            ("bf16/tp1/dense.csv", "bf16/tp1/per_sequence.csv", "bf16/tp1/attention.csv", "bf16/meta.yaml"),
        ),
        ("vidur", "llama", ("llama/mlp.csv", "llama/attention.csv")),
        ("planner", "perf.npz", ("perf.npz",)),
        ("blis", "blis.json", ("blis.json", "blis.hardware.json")),
    ],
)
def test_a_device_is_exported(
    tool: str, output: str, files: tuple[str, ...], tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]
) -> None:
    """The files are there, the line names them, and notes say what the tool does not get to know."""
    place = tmp_path / output
    code, out, err = dooly("db", "export", "--format", tool, "--hardware", "h200", *MODEL, *SMALL, "--output", place)
    assert code == 0
    assert all(str(tmp_path / name) in out for name in files)
    assert all((tmp_path / name).stat().st_size for name in files)
    assert all(line.startswith("dooly: note: ") for line in err.splitlines())
    assert err


def test_a_store_is_exported_and_imported(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """From a device to a bundle, from that to a store, and from there to the planner's arrays."""
    bundle, db, arrays = tmp_path / "bf16", tmp_path / "db", tmp_path / "perf.npz"
    export = ("db", "export", "--format")
    assert dooly(*export, "llmservingsim", "--hardware", "h200", *MODEL, *SMALL, "--output", bundle)[0] == 0
    assert dooly("db", "import", "--format", "llmservingsim", bundle, *MODEL, "--db", db)[0] == 0
    code, _out, err = dooly(*export, "planner", db, *MODEL, *SMALL, "--output", arrays)
    assert (code, "dooly: note: the mocker adds" in err) == (0, True)
    with np.load(arrays) as found:
        assert found["prefill_isl"][-1] == 16


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--format", "vidur", "x", *MODEL), ("--output", "--format vidur")),
        (("--format", "vidur", "x", "--output", "y"), ("--model",)),
        (("--format", "vidur", *MODEL, "--output", "y"), ("one PATH or --hardware",)),
        (("--format", "vidur", "x", "z", *MODEL, "--output", "y"), ("one PATH",)),
        (("--format", "vidur", "x", *MODEL, "--hardware", "h200", "--output", "y"), ("one PATH or",)),
        (("--format", "vidur", "no-such-store", *MODEL, "--output", "y"), ("no-such-store", "dooly profile")),
        (("--format", "nothing", "x"), ("nothing", "llmservingsim")),
        ((), ("give PATH",)),
        (("x", *MODEL), ("--format",)),
    ],
)
def test_wrong_usage_is_refused(
    arguments: tuple[str, ...], parts: tuple[str, ...], dooly: Callable[..., tuple[int, str, str]]
) -> None:
    """2, and one line that says what goes with what."""
    code, out, err = dooly("db", "export", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(part in err for part in parts)
