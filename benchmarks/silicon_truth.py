"""Simulate what real vLLM servers on H200 did under closed loops, from measurements that ship, beside aiconfigurator's answers.

    python benchmarks/silicon_truth.py GPUDATA [--configs FOLDER] [--json FILE]    # one line a model and number of ranks
    python benchmarks/silicon_truth.py GPUDATA --configs FOLDER --predicted FILE   # the same of an earlier --json, in seconds
    python benchmarks/silicon_truth.py GPUDATA --peer FILE       # where aiconfigurator 0.12 is installed: what it predicts

GPUDATA holds `silicon/vllm-h200.csv`, a row a server under a closed loop (aiconfigurator's accuracy sample, Apache-2.0). FOLDER
holds configurations that are not listed, as `MiniMaxAI--MiniMax-M2.5`; what it lacks is left out.

Rows tell model, precision, ranks, lengths and users. How clients and servers were set is published by who ran them, with its
history (SemiAnalysisAI/InferenceX, Apache-2.0): ten requests a user, lengths drawn uniformly from 80 % of the nominal ones up to
these, no prefix caching, no more requests at once than users. `SERVERS` has what differs. Nothing of `ours` is
fitted to the rows. `served` adds to TTFT what a server takes beside its engine's steps (HTTP, text to tokens and back, queues),
which is learnt on another model's rows: two numbers, whose form was chosen with all rows in view.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from math import log2
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.engines import ServingConfig, find_model
from dooly.errors import ModelNotFoundError
from dooly.predict import load_latency_model
from dooly.simulation import parse_workload, scheduler_config, simulate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dooly.engines import ModelSource

ROWS = Path("silicon") / "vllm-h200.csv"
PEER = Path(__file__).parent / "results" / "gpu" / "aiconfigurator-h200.csv"
SHARE, REQUESTS = 0.8, 10
LONGEST = 8192 + 1024 + 256
"""Of a request in all rows, so that a model is traced once for them."""
METRICS = ("ttft", "tpot")
LEARNT_ON = {
    "meta-llama/Llama-3.1-70B": "openai/gpt-oss-120b",
    "openai/gpt-oss-120b": "meta-llama/Llama-3.1-70B",
    "MiniMaxAI/MiniMax-M2.5": "meta-llama/Llama-3.1-70B",
}
"""Whose rows tell what a server takes beside its engine's steps: never a model's own."""
_PROMPT, _USERS, SHORT = 2, 4, "1024"
"""Places in a row's key, and the prompts of the rows that tell it."""


@dataclass(frozen=True)
class Server:
    """How a model was served, as far as rows do not tell."""

    config: str
    """A listed model, or a folder of FOLDER."""
    changes: dict[str, Any]
    """What the model's own configuration has in other places than that."""
    settings: dict[str, Any]
    """Engine settings."""


SERVERS = {
    "meta-llama/Llama-3.1-70B": Server(
        # The checkpoint served declares its cache in FP8; more requests run at once than a cache of two bytes has room for.
        "llama-3.1-70b",
        {},
        {"quantization": "fp8", "kv_cache_dtype": "fp8", "max_num_batched_tokens": 8192},
    ),
    "openai/gpt-oss-120b": Server(
        "gpt-oss-20b",
        {
            "num_hidden_layers": 36,
            "num_local_experts": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 18,
            "quantization_config": {
                "quant_method": "mxfp4",
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
            },
        },
        {"max_num_batched_tokens": 8192, "max_cudagraph_capture_size": 2048, "moe_backend": "marlin"},
    ),
    "MiniMaxAI/MiniMax-M2.5": Server(
        "MiniMaxAI--MiniMax-M2.5", {}, {"max_num_seqs": 1024, "max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.95}
    ),
}
PEER_NAMES = {"meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B"}
"""What aiconfigurator calls a model where it is something else."""


def source_of(server: Server, configs: Path | None, scratch: Path) -> ModelSource | None:
    """Return a model by its configuration, changes applied; None where its folder is not there."""
    try:
        base = find_model(
            server.config if configs is None or not (configs / server.config).is_dir() else str(configs / server.config)
        )
    except ModelNotFoundError:
        return None
    if not server.changes:
        return base
    folder = scratch / server.config
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(base.config | server.changes))
    return find_model(str(folder))


def predict(row: dict[str, str], source: ModelSource) -> dict[str, Any]:
    """Simulate one row's clients and server, and return mean latencies in milliseconds with where the seconds are from."""
    prompt, output, users, ranks = (int(row[name]) for name in ("isl", "osl", "batch_size", "tp_size"))
    settings = SERVERS[row["model_path"]].settings
    serving = ServingConfig(**{"max_num_seqs": users} | settings, tensor_parallel_size=ranks, max_model_len=LONGEST)
    latency = load_latency_model(model=source, serving=serving, hardware="h200")
    lengths = ",".join(f"{name}={int(SHARE * most)}-{most}" for name, most in (("prompt", prompt), ("output", output)))
    workload = parse_workload(f"closed:concurrency={users},requests={REQUESTS * users},{lengths},seed=0")
    found = simulate(workload, latency, scheduler_config(serving, latency)).summary()
    return {metric: 1e3 * found[f"{metric}_s"]["mean"] for metric in METRICS} | {"provenance": dict(latency.provenance)}


def peer_predictions(rows: Sequence[dict[str, str]], file: Path) -> None:
    """Write what aiconfigurator predicts of each row, in milliseconds; those that it refuses are printed and left out."""
    from aiconfigurator.cli.api import cli_estimate  # type: ignore[import-not-found]

    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        sizes = {name: int(row[name]) for name in ("isl", "osl", "batch_size", "tp_size")}
        if SERVERS[row["model_path"]].settings.get("quantization"):
            more: dict[str, Any] = {"gemm_quant_mode": "fp8", "kvcache_quant_mode": "fp8"}
        else:
            more = {name: int(row[name]) for name in ("moe_tp_size", "moe_ep_size")}
        name = PEER_NAMES.get(row["model_path"], row["model_path"])
        try:
            estimate = cli_estimate(name, row["system"], backend_name="vllm", **sizes, **more)
        except (RuntimeError, ValueError) as error:
            print(f"{row['id']}: {error}")
        else:
            found[row["id"]] = (round(estimate.ttft, 3), round(estimate.tpot, 4))
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", *METRICS), *((name, *values) for name, values in found.items())])


def errors(rows: Iterable[dict[str, Any]], who: str, metric: str) -> dict[str, float] | None:
    """Return the mean absolute error and the mean error of one predictor's latencies; None where it gives none."""
    found = [row[who][metric] / row["real"][metric] - 1 for row in rows if row[who] is not None]
    return {"rows": len(found), "mape": mean(map(abs, found)), "bias": mean(found)} if found else None


def server_ms(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return what a server takes for a request beside its engine's steps: milliseconds, and more for each doubling of users.

    By least squares of relative errors over rows of short prompts, where the engine's own errors are few milliseconds.
    """
    short = [row for row in rows if row["key"][_PROMPT] == SHORT]
    users = np.array([float(row["key"][_USERS]) for row in short])
    real, ours = (np.array([row[who]["ttft"] for row in short]) for who in ("real", "ours"))
    terms = np.column_stack([np.ones(len(users)), np.log2(users)])
    alone, doubled = np.linalg.lstsq(terms / real[:, None], (real - ours) / real, rcond=None)[0]
    return float(alone), float(doubled)


def with_server_time(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Add to each row what a client would see, with a server's time learnt on another model's rows; return that by model."""
    by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_model[row["key"][0]].append(row)
    learnt = {}
    for model, own in by_model.items():
        teacher = by_model.get(LEARNT_ON[model])
        alone, doubled = learnt[model] = (0.0, 0.0) if teacher is None else server_ms(teacher)
        for row in own:
            beside = alone + doubled * log2(float(row["key"][_USERS]))
            row["served"] = row["ours"] | {"ttft": row["ours"]["ttft"] + beside}
    return learnt


def judge(gpudata: Path, configs: Path | None, predicted: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return each row with what was served, what the simulation says (or said, by a row's name), and what the peer says of it."""
    rows = list(csv.DictReader((gpudata / ROWS).read_text().splitlines()))
    peers = {
        row["id"]: {metric: float(row[metric]) for metric in METRICS} for row in csv.DictReader(PEER.read_text().splitlines())
    }
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        sources = {model: source_of(server, configs, Path(scratch)) for model, server in SERVERS.items()}
        for row in rows:
            key = tuple(row[name] for name in ("model_path", "tp_size", "isl", "osl", "batch_size"))
            if (source := sources[row["model_path"]]) is None:
                continue
            if predicted is not None:
                known[key] = predicted[row["id"]]
            elif key not in known:
                known[key] = predict(row, source)
            real = {metric: float(row[f"silicon_{metric}_ms"]) for metric in METRICS}
            found.append({"id": row["id"], "key": key, "real": real, "ours": known[key], "peer": peers.get(row["id"])})
    return found


def main() -> None:
    """Judge every row there is, or write the peer's predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gpudata", type=Path)
    parser.add_argument("--configs", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--predicted", type=Path, help="an earlier --json, whose predictions are judged anew")
    parser.add_argument("--peer", type=Path)
    args = parser.parse_args()
    if args.peer is not None:
        peer_predictions(list(csv.DictReader((args.gpudata / ROWS).read_text().splitlines())), args.peer)
        return
    predicted = None if args.predicted is None else {r["id"]: r["ours"] for r in json.loads(args.predicted.read_text())["rows"]}
    rows = judge(args.gpudata, args.configs, predicted)
    for model, (alone, doubled) in with_server_time(rows).items():
        print(f"{model}: a server's own time by {LEARNT_ON[model]}: {alone:.1f} + {doubled:.1f} * log2(users) ms")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        model, ranks, *_ = row["key"]
        groups[model, "all"].append(row)
        groups[model, ranks].append(row)
    table: list[dict[str, Any]] = []
    for (model, ranks), group in sorted(groups.items()):
        answered = [row for row in group if row["peer"] is not None]
        line: dict[str, Any] = {"model": model, "ranks": ranks}
        judged = (("ours", group), ("ours where the peer answers", answered), ("peer", answered), ("served", group))
        for who, of in judged:
            line[who] = {metric: errors(of, who.split()[0], metric) for metric in METRICS}
            if of and (who != "ours where the peer answers" or len(of) < len(group)):
                texts = (f"{m.upper()} {line[who][m]['mape']:.1%} ({line[who][m]['bias']:+.1%})" for m in METRICS)
                print(f"{model} x{ranks}, {who}, {len(of)} rows: {', '.join(texts)}")
        table.append(line)
    if args.json:
        predicted = [{"id": row["id"], "ours": row["ours"]} for row in rows]  # what real servers did stays where it is from
        args.json.write_text(json.dumps({"schema": 1, "table": table, "rows": predicted}, indent=1) + "\n")


if __name__ == "__main__":
    main()
