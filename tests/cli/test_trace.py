"""`dooly trace`, on vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dooly.tracing import TracedModel

ROOT = Path(__file__).parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
}


def trace(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `dooly trace` in a process of its own: nothing that an engine prints at any level goes unseen."""
    command = [sys.executable, "-m", "dooly", "trace", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def write_config(folder: Path, **changes: object) -> Path:
    """Write the configuration of a tiny model into a folder."""
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


@pytest.mark.engine
def test_json_in_the_documented_form_a_table_and_a_page(tmp_path: Path) -> None:
    """`--json FILE` holds the schema's keys; the table has a row for each operation; stages are joined; stderr stays empty."""
    files = ("--json", str(tmp_path / "trace.json"), "--html", str(tmp_path / "trace.html"))
    done = trace(write_config(tmp_path), *files, "--batch", "decode=2,context=64")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads((tmp_path / "trace.json").read_text())
    assert (document["schema"], document["model"]) == (1, tmp_path.name)
    keys = {"signature", "name", "module", "stage", "stateful", "count", "inputs", "flops", "bytes"}
    for operation in document["operations"]:
        assert operation.keys() >= keys
        rows = [line.split() for line in done.stdout.splitlines() if line.endswith(f" {operation['signature'][:8]}")]
        (row,) = (row for row in rows if operation["module"].endswith(row[0]) and str(operation["count"]) in row)
        assert operation["module_class"] in row
    dims = [dim for op in document["operations"] for tensor in op["inputs"] for dim in tensor["shape"]]
    assert {dim["origin"] for dim in dims} <= {"config", "request", "mixed"}
    assert all(("value" in dim) == (dim["origin"] == "config") for dim in dims)
    assert "num_tokens × num_attention_heads × head_dim" in done.stdout  # noqa: RUF001 - as dimensions are written
    edges = TracedModel.from_json(document).edges
    assert [(source.partition(".")[0], target) for source, target in edges[-2:]] == [
        ("decoder", "logits.0"),
        ("logits", "logits.1"),
    ]
    assert "--batch decode=2,context=64" in (tmp_path / "trace.html").read_text(encoding="utf-8")


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["vllm", "transformers", "torch"])
def test_a_broken_configuration_is_one_line(tmp_path: Path, engine: str) -> None:
    """What Transformers finds wrong in a config.json exits with 2 in one line, on either engine."""
    done = trace(write_config(tmp_path, hidden_size="big"), "--engine", engine)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "Field 'hidden_size' expected int, got str (value: 'big'); check its config.json" in done.stderr


@pytest.mark.engine
def test_an_engine_of_another_name_traces_its_own_operations(tmp_path: Path) -> None:
    """`--engine transformers` names its attention and its version, and says nothing on stderr; no other engine is there."""
    done = trace(write_config(tmp_path), "--engine", "transformers", "--dtype", "float32", "--json", "-")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["environment"]["engine"] == "transformers"
    assert "paged_attention" in {operation["name"] for operation in document["operations"]}
    refused = trace(tmp_path, "--engine", "tgi")
    assert refused.returncode == 2
    assert "transformers" in refused.stderr


@pytest.mark.engine
def test_an_unknown_architecture_is_one_line(tmp_path: Path) -> None:
    """An architecture that vLLM does not know exits with 2 and is named in one short line."""
    done = trace(write_config(tmp_path, architectures=["NoSuchForCausalLM"]))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "NoSuchForCausalLM" in done.stderr
    assert len(done.stderr) < 300
