"""The page of schemas names the keys of real output, all of them and no others."""

from __future__ import annotations

import json
import re
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dbstore import Environment, Record, Store
from dooly.cli import main
from dooly.engines import ServingConfig, find_model

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[1] / "docs" / "schemas.md").read_text()
_NAME = re.compile(r"`([^`]+)`")
WORKLOAD = "poisson:rate=8,requests=6,prompt=64,output=8"
ON_H200 = ("llama-3.1-8b", "--hardware", "h200", "--max-model-len", "1024")


def told(name: str) -> set[str]:
    """Return the keys of a schema as the page writes them."""
    lines = PAGE.partition(f"<!-- schema {name} -->")[2].strip().splitlines()
    cells = [line.split(" | ")[0] for line in takewhile(lambda line: line.startswith("|"), lines)][2:]
    return {key for cell in cells for key in _NAME.findall(cell)}


def paths(value: object, path: str = "") -> Iterator[str]:
    """Yield the path of every value that is no object and no list, and of every empty one."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from paths(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from paths(inner, f"{path}[]")
    else:
        yield path


def check(name: str, *documents: object) -> None:
    """Hold documents to a schema: every key is told, and each that must be there is there in one of them."""
    keys = told(name)
    must = {key for key in keys if not key.endswith("?")}
    patterns = {
        key: re.compile(re.escape(key.removesuffix("?")).replace(r"\.\*", r"(\..*)?").replace(r"\[\]", r"(\[\])?"))
        for key in keys
    }
    found = {path for document in documents for path in paths(document)}
    seen: set[str] = set()
    for path in found:
        fits = {key for key, pattern in patterns.items() if pattern.fullmatch(path)}
        # A null, or an empty list, stands for all that it could hold.
        fits |= {key for key in keys if key.startswith((f"{path}.", f"{path}[]"))}
        assert fits, f"{name}: {path} is not in docs/schemas.md"
        seen |= fits
    assert must <= seen, f"{name}: docs/schemas.md tells what is not there"


def run(*arguments: object) -> None:
    """Run a command that must succeed."""
    assert main([str(argument) for argument in arguments]) == 0


def read(path: Path) -> Any:  # noqa: ANN401 - a document
    """Return a document."""
    return json.loads(path.read_text())


def test_simulations_and_comparisons(tmp_path: Path) -> None:
    """`simulate` of one engine, of two and under a KV policy, as JSON and CSV, and `compare` of what it wrote."""
    one, two, apart, kept, compared = (tmp_path / f"{name}.json" for name in ("one", "two", "apart", "kept", "compared"))
    common = ("simulate", *ON_H200, "--workload", WORKLOAD, "--slo", "ttft-p90=1s")
    run(*common, "--json", one, "--csv", tmp_path / "one.csv")
    run(*common, "--json", two, "--csv", tmp_path / "two.csv", "--data-parallel-size", 2)
    layout = ("--prefill-replicas", 1, "--decode-replicas", 1, "--kv-transfer", "bandwidth=50,latency=20")
    run(*common, "--json", apart, "--csv", tmp_path / "apart.csv", *layout)
    run(*common, "--json", kept, "--kv-policy", "snapkv", "--kv-budget", 0.5)
    check("simulate", *map(read, (one, two, apart, kept)))
    heads = [(tmp_path / f"{name}.csv").read_text().partition("\n")[0] for name in ("one", "two", "apart")]
    check("simulate-csv", *(dict.fromkeys(head.split(",")) for head in heads))
    run("compare", tmp_path / "one.csv", tmp_path / "two.csv", "--json", compared)
    check("compare", read(compared))


def test_searches(tmp_path: Path) -> None:
    """`search`, with a candidate that serves."""
    found = tmp_path / "found.json"
    limits = ("--ttft-p90", "1s", "--tpot-p90", "50ms")
    run("search", *ON_H200, "--workload", "poisson:requests=6,prompt=64,output=8", *limits, "--json", found, "--processes", 1)
    check("search", read(found))


def test_validations() -> None:
    """What `validate` writes of two runs, here of two simulations."""
    from dooly.simulation import LinearLatency, SchedulerConfig, parse_workload, simulate
    from dooly.validation import MachineState, MetricReport, StepReport, Validation

    result = simulate(parse_workload(WORKLOAD), LinearLatency(1e6), SchedulerConfig(max_model_len=1024, num_kv_blocks=64))
    report = MetricReport(0.1, -0.1, 0.05)
    done = Validation((result, result), result, report, report, StepReport(9, 0.1, 0.1, 0.1), MachineState(0.0), (0.1, 0.2))
    check("validate", json.loads(json.dumps(done.to_json())))


def test_traces() -> None:
    """`trace`, of a model of which a table ships."""
    from dooly.catalog import operation_table

    check("trace", json.loads(json.dumps(operation_table(find_model("llama-3.1-8b"), ServingConfig(), "h200").to_json())))


def test_stores(tmp_path: Path) -> None:
    """A record and its environment as they lie in the store, and what `db export` writes of it."""
    fields = {"device": "A", "device_kind": "cpu", "driver": "1", "torch_version": "2", "engine": "e", "engine_version": "1"}
    fields |= {
        "attention_backend": "B",
        "dtype": "float32",
        "kv_cache_dtype": "auto",
        "execution_mode": "eager",
        "quantization": None,
    }
    environment = Environment(**fields, block_size=16, num_threads=2)  # type: ignore[arg-type] # texts and None
    store = Store.open(tmp_path / "db", "a")
    store.write_document("environments", environment.digest, environment.to_json())
    store.write(Record("a0", environment.digest, {"d0": 1}, np.array([5, 6]), {"wall_s": 1.0}))
    run("db", "export", tmp_path / "db", "--output", tmp_path / "out.json")
    check("db-export", read(tmp_path / "out.json"))
    check("environment", environment.to_json())
    (group,) = (path for path in (tmp_path / "db" / "records").glob("*/*/*/zarr.json"))
    check("record", read(group)["attributes"])


def test_kv_errors(tmp_path: Path) -> None:
    """`kv error`, of one policy and a small model."""
    pytest.importorskip("transformers")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "vocab_size": 64}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tried = ("--policy", "snapkv", "--num-tokens", 100, "--budget", 0.5, "--seeds", 1)
    run("kv", "error", tmp_path, *tried, "--json", tmp_path / "errors.json")
    check("kv-error", read(tmp_path / "errors.json"))


@pytest.mark.parametrize(("document", "rule"), [({"schema": 1, "later": 2}, "later is not in"), ({"schema": 1}, "not there")])
def test_other_keys_are_found(document: dict[str, int], rule: str) -> None:
    """A key that the page does not tell, and one that it tells in vain, fail."""
    with pytest.raises(AssertionError, match=rule):
        check("kv-error", document)
