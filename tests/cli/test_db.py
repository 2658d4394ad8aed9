"""`dooly db`: info, verify, merge, export and import, on sound and on broken stores and files."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest

from dbstore import Store
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def damage(db: Path) -> Path:
    """Flip one bit in a chunk of samples; return the chunk's path."""
    chunk = next(path for path in sorted(db.rglob("c/0")) if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    return chunk


def test_info_counts(db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Info shows operations, records, infeasible points, samples, measuring time and environments."""
    code, out, err = dooly("db", "info", db)
    rows = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in out.splitlines() if len(line.split()) > 1}
    assert (code, err) == (0, "")
    assert [rows[name] for name in ("operations", "records", "infeasible", "samples")] == ["2", "3", "1", "6"]
    assert "3.0 s" in out
    assert "AMD EPYC 9554" in out


def test_info_names_traced_models(db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Each model traced into the store has a line: its name, engine, number of operations and environment."""
    store = Store.open(db, "a")
    (environment,) = store.documents("environments")
    made = {"engine": "vllm", "engine_version": "0.32.0", "dtype": "bfloat16"}
    traced = TracedModel("smollm2-135m", made, ()).to_json()
    document = {"model": "smollm2-135m", "config": "c0", "environment": environment, "traced": traced}
    store.write_document("traces", "0" * 32, document)
    _, out, _ = dooly("db", "info", db)
    (line,) = (line.split(maxsplit=2) for line in out.splitlines() if line.split()[:1] == ["model"])
    assert line[1] == "smollm2-135m"
    assert line[2].rstrip() == f"vllm 0.32.0 bfloat16, 0 operations, environment {environment[:8]}"


def test_a_newer_schema_is_refused(db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A store of a schema version to come exits with 1; the line names both versions."""
    root = db / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["dbstore"]["schema_version"] = 99
    root.write_text(json.dumps(document))
    code, out, err = dooly("db", "info", db)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "schema version 99" in err
    assert str(db) in err


def test_verify_passes_a_sound_store(db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A sound store has no problems, and the exit code is 0."""
    assert dooly("db", "verify", db) == (0, f"{db}: no problems\n", "")


def test_verify_names_a_damaged_chunk(db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A damaged chunk is one line that names it, and the exit code is 1."""
    chunk = damage(db)
    code, out, err = dooly("db", "verify", db)
    problem, total = out.splitlines()
    assert (code, total, err) == (1, f"{db}: 1 problem", "")
    assert str(chunk.parents[1].relative_to(db)) in problem


def test_reading_a_damaged_chunk_is_one_line(db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A command that reads a damaged chunk exits with 1 and names it in one line."""
    chunk = damage(db)
    code, out, err = dooly("db", "export", db)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(chunk.parents[1].relative_to(db)) in err


def test_report_writes_a_page(db: Path, tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """The page is where it was asked for, and nothing is printed; without a place it is a line with a next step."""
    assert dooly("db", "report", db, "--html", tmp_path / "store.html")[:2] == (0, "")
    assert "3 records of 2 operations" in (tmp_path / "store.html").read_text()
    code, out, err = dooly("db", "report", db)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--html" in err


def test_merge_copies_what_is_missing(db: Path, tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """The first path gets the others' records; a second merge copies none."""
    target = tmp_path / "merged"
    assert dooly("db", "merge", target, db) == (0, f"{db}: 3 records copied to {target}\n", "")
    assert dooly("db", "merge", target, db) == (0, f"{db}: 0 records copied to {target}\n", "")
    assert set(Store.open(target).keys()) == set(Store.open(db).keys())


def test_merge_from_nowhere_makes_no_store(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A source that does not exist exits with 2, before the target is made."""
    code, _, err = dooly("db", "merge", tmp_path / "target", tmp_path / "nowhere")
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "target").exists()


def test_export_writes_a_row_a_point(db: Path, tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """CSV and JSON hold the same rows: the median of each point, or why there is none."""
    assert dooly("db", "export", db, "--output", tmp_path / "records.csv") == (0, "", "")
    assert dooly("db", "export", db, "--output", tmp_path / "records.json") == (0, "", "")
    rows = json.loads((tmp_path / "records.json").read_text())
    found = [(r["signature"], r["point"]["num_tokens"], r["median_ns"], r["num_samples"], r["infeasible"]) for r in rows]
    assert sorted(found) == [("a0", 1, 200, 3, None), ("a0", 16, 3200, 3, None), ("b0", 1, None, 0, "out of memory")]
    with (tmp_path / "records.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [json.loads(row["point"]) for row in table] == [row["point"] for row in rows]
    assert [row["median_ns"] for row in table] == ["" if r["median_ns"] is None else str(r["median_ns"]) for r in rows]


def test_export_to_stdout_is_csv(db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Without --output the rows go to stdout, and nothing else does."""
    code, out, _ = dooly("db", "export", db)
    assert code == 0
    assert out.splitlines()[0] == "signature,environment,point,median_ns,num_samples,infeasible"
    assert len(out.splitlines()) == 4


WIDTHS = "n_head,n_kv_head,n_embd,n_expanded_embd,use_gated_mlp,num_tokens,num_tensor_parallel_workers"
HEADS = "n_embd,n_q_head,n_kv_head,block_size,num_tensor_parallel_workers,batch_size,prefill_chunk_size,kv_cache_size"


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """Profiles of Vidur of three products and of attention of Llama 3.1 8B, and of something that is none of its operations."""
    folder = tmp_path / "compute" / "a100" / "llama"
    folder.mkdir(parents=True)
    names = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "warp_drive")
    rows = [f"0.1,0.05,0.2,{9 + n / 1000},32,8,4096,14336,True,{n},1" for n in (1, 64, 2048)]
    (folder / "mlp.csv").write_text("\n".join([",".join([*(f"time_stats.{name}.median" for name in names), WIDTHS]), *rows]))
    decodes = [f"{0.01 * n},,4096,32,8,16,1,{n},0,{length}" for n in (1, 8) for length in (64, 4000)]
    prefills = [f",{chunk / 1000},4096,32,8,16,1,1,{chunk},0" for chunk in (64, 512, 2048)]
    header = f"time_stats.attn_decode.median,time_stats.attn_prefill.median,{HEADS}"
    (folder / "attention.csv").write_text("\n".join([header, *decodes, *prefills]))
    return folder


def test_import_says_what_it_wrote_and_what_found_no_place(
    profiles: Path, tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]
) -> None:
    """A line counts records, operations and rows; what found no place is named. Again nothing is new; the store simulates."""
    words = ("db", "import", "--format", "vidur", profiles, "--model", "llama-3.1-8b", "--db", tmp_path / "db")
    code, out, err = dooly(*words)
    first, what, _, lacking = out.splitlines()
    assert (code, err) == (0, "")
    assert first == f"{profiles}: 16 records of 4 operations, 16 of them new; 3 rows not placed:"
    assert what == "  mlp.csv warp_drive: 3 rows"
    assert {"model.layers.0.mlp.down_proj", "logits_processor", "sampler"} <= set(lacking.strip().split(", "))
    assert f"{profiles}: 16 records of 4 operations, 0 of them new;" in dooly(*words)[1]
    workload = "poisson:rate=1,requests=2,prompt=8,output=2"
    code, out, _ = dooly("simulate", "llama-3.1-8b", "--db", tmp_path / "db", "--workload", workload)
    assert code == 0
    assert all(f"% {source}" in out for source in ("measured", "family", "estimated"))


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (
            ["--format", "splitwise", "--model", "llama-3.1-8b"],
            "--format: 'splitwise' is none of llmservingsim, aiconfigurator, vidur",
        ),
        (["--format", "vidur"], "--model: none given; name the model"),
        (["--format", "vidur", "--model", "lama"], "MODEL: 'lama' is neither a folder nor a listed name"),
        (["--format", "llmservingsim", "--model", "llama-3.1-8b"], "holds no folder tp1, tp2, ... of a bundle"),
        (["--format", "aiconfigurator", "--model", "llama-3.1-8b"], "holds no gemm_perf.parquet"),
        (["--format", "vidur", "--model", "llama-3.1-8b", "--tensor-parallel-size", "4"], "for 4 tensor-parallel ranks, only"),
        (["--format", "vidur", "--model", "qwen2.5-0.5b"], "no row is of an operation of qwen2.5-0.5b in bfloat16"),
    ],
)
def test_import_refuses_in_one_line(
    profiles: Path, tmp_path: Path, dooly: Callable[..., tuple[int, str, str]], words: list[str], rule: str
) -> None:
    """Exit code 2, a line that says what to give, and no store."""
    code, out, err = dooly("db", "import", profiles, *words, "--db", tmp_path / "db")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert rule in err
    assert not (tmp_path / "db").exists()
