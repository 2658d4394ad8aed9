"""Rows of tables about GPUs: `result_tables.py` puts them into pages."""

from __future__ import annotations

from statistics import mean, median
from typing import TYPE_CHECKING

from result_files import percent, read

from dooly.kv_policy import KEPT_BY, NUM_DENSE_LAYERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOADS = {
    "llama-3.1-8b.FLASH_ATTN.default.medium": "Llama 3.1 8B, 12 requests a second",
    "llama-3.1-8b.FLASH_ATTN.default.heavy": "Llama 3.1 8B, 32 a second, near saturation",
    "qwen2.5-7b.FLASH_ATTN.default.long": "Qwen2.5 7B, not profiled, prompts of 2,048 to 7,000 tokens, 3 a second",
    "llama-3.1-8b-fp8.FLASH_ATTN.default.medium": "Llama 3.1 8B in FP8, 12 a second",
    "llama-3.1-8b-fp8.FLASH_ATTN.default.heavy": "Llama 3.1 8B in FP8, 32 a second",
    "qwen3-30b-a3b.FLASH_ATTN.default.medium": "Qwen3 30B A3B, 128 experts, 12 a second",
}
SLOWER = "shipped, slower host"
_SOURCES = {
    "shipped": "what ships",
    SLOWER: "what ships, `--host-slowdown {:.2f}`",
    "imported": "imported tables",
    "own": "own records",
}
SERVED = {
    "meta-llama/Llama-3.1-70B": "Llama 3.1 70B, FP8",
    "openai/gpt-oss-120b": "gpt-oss 120B, MXFP4",
    "MiniMaxAI/MiniMax-M2.5": "MiniMax M2.5, FP8 in blocks",
}
RUNS = {"llama-3.1-8b": "Llama 3.1 8B, one rank", "qwen3-32b": "Qwen3 32B, two ranks"}
_PEER_STATISTICS = {"mean": "Mean", "p50": "Median", "p90": "P90", "p99": "P99"}
_FAMILIES = {"linear": "linear layers", "decodes": "decodes", "prefills": "prefills", "experts": "experts (models)"}


def gpu_runs() -> Iterator[list[str]]:
    """Yield errors against LLMServingSim's real runs, ours and its own below."""
    yield ["", "TTFT mean", "P50", "P90", "P99", "TPOT mean", "P50", "P90", "P99"]
    for run in read("gpu/truth.json")["runs"]:
        metrics = ("ttft", "tpot")
        yield [
            RUNS[run["model"]],
            *(percent(run[metric]["errors"][name]) for metric in metrics for name in _PEER_STATISTICS),
        ]
        yield [
            "the peer",
            *(percent(run["peer"][f"{metric.upper()} {name}"]) for metric in metrics for name in _PEER_STATISTICS.values()),
        ]


def cost_h200() -> Iterator[list[str]]:
    """Yield what a sweep took of a whole grid that was measured on an H200, and how far off is what either left out."""
    yield ["", "records", "device-seconds", "operations left out: median error, 90th percentile"]
    found = read("gpu/profiling-h200.json")
    grid, dooly = found["grid"], found["dooly"]
    yield ["whole grid, one pass", f"{grid['records'][0]:,}", f"{grid['seconds'][0]:.1f}", _errors(grid["operations"])]
    yield ["whole grid, three passes", f"{sum(grid['records']):,}", f"{sum(grid['seconds']):.1f}", ""]
    for part in found["thinned"]:
        yield [f"{part['share']:.0%} of the grid by chance, one pass", "", f"{part['seconds']:.1f}", _errors(part["operations"])]
    seconds = f"**{sum(dooly['seconds']):.1f}** to {dooly['at_most_s']:.1f}"
    yield ["**Dooly**", f"{sum(dooly['records']):,}", seconds, _errors(dooly["operations"])]


def cost_h200_operations() -> Iterator[list[str]]:
    """Yield how far off each operation is where a whole grid of an H200, and a sweep of it, left it out."""
    yield ["operation", "points left out by Dooly", "whole grid, one pass", "Dooly"]
    for row in read("gpu/profiling-h200.json")["by_operation"]:
        yield [f"`{row['name']}`", str(row["left_out"]), _errors(row["grid"]), _errors(row["dooly"])]


def _errors(quantiles: list[float]) -> str:
    return ", ".join(percent(value, sign=False) for value in quantiles)


def gpu_loads() -> Iterator[list[str]]:
    """Yield errors against runs on an H200, by what the latencies are from."""
    yield ["load", "predicted by", "TTFT: error of the mean, of a request, noise", "TPOT: the same"]
    found = read("gpu/h200.json")
    slowdown, loads = found["second"]["host_slowdown"], found["loads"] + found["second"]["loads"]
    for run, name in LOADS.items():
        told = {load["by"]: load for load in loads if load["run"] == run}
        for place, by in enumerate(source for source in _SOURCES if source in told):
            cells = [
                f"{percent(told[by][metric]['mean_error'])}, "
                f"{percent(told[by][metric]['mape'], sign=False)}, {percent(told[by][metric]['noise'], sign=False)}"
                for metric in ("ttft", "tpot")
            ]
            yield [name if place == 0 else "", _SOURCES[by].format(slowdown), *cells]


def gpu_servers() -> Iterator[list[str]]:
    """Yield errors against other people's servers, beside aiconfigurator's; in brackets the rows that it answers."""
    yield ["", "rows", "TTFT", "aiconfigurator", "TPOT", "aiconfigurator"]
    table = read("gpu/silicon-h200.json")["table"]
    for model, name in SERVED.items():
        for row in (row for row in table if row["model"] == model):
            ranks = {"all": "all", "1": "1 rank"}.get(row["ranks"], f"{row['ranks']} ranks")
            rows = row["ours"]["ttft"]["rows"]
            answered = (row["peer"]["ttft"] or row["ours"]["ttft"])["rows"]
            cells = [_mape_and_bias(row[who][metric]) for metric in ("ttft", "tpot") for who in ("ours", "peer")]
            yield [f"{name}, {ranks}", f"{rows}" if answered == rows else f"{rows} ({answered})", *cells]


def _mape_and_bias(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{percent(found['mape'], sign=False)} ({percent(found['bias'])})"


def families_known() -> Iterator[list[str]]:
    """Yield each family's error on configurations held out, by how many are known: medians of three splits."""
    yield ["", "configurations known", "median", "90th percentile"]
    rows = read("gpu/families-h200.json")["rows"]
    for family, name in _FAMILIES.items():
        told = [row for row in rows if row["family"] == family]
        yield [
            name,
            ", ".join(str(row["known"]) for row in told),
            ", ".join(percent(median(row["median"]), sign=False) for row in told),
            ", ".join(percent(median(row["p90"]), digits=0, sign=False) for row in told),
        ]


def kv_serving() -> Iterator[list[str]]:
    """Yield what users of each policy see, by length of prompts, and attention's error at the same budget, where it acts."""
    found, errors = read("gpu/kv-serving-h200.json")["rows"], read("cpu/kv-error-llama-3.1-8b.json")["errors"]
    lengths = dict.fromkeys(row["num_tokens"] for row in found)
    yield ["", *(f"{length:,} tokens" for length in lengths), "error"]
    for policy in dict.fromkeys(row["policy"] for row in found):
        cells = [
            f"{row['ttft_s']:.2f} s / {1e3 * row['tpot_s']:.1f} ms / {row['fit']} / {row['users']}"
            for row in found
            if row["policy"] == policy
        ]
        layers = next((each["layers"] for each in errors if each["policy"] == policy), [])
        acting = layers if KEPT_BY.get(policy) else layers[NUM_DENSE_LAYERS:]
        error = percent(mean(layer["output"] for layer in acting), sign=False) if acting else "0"
        yield [policy if policy == "none" else f"`{policy}`", *cells, error]


TABLES: dict[str, Callable[[], Iterator[list[str]]]] = {
    "cost-h200": cost_h200,
    "cost-h200-operations": cost_h200_operations,
    "gpu-runs": gpu_runs,
    "gpu-loads": gpu_loads,
    "gpu-servers": gpu_servers,
    "families-known": families_known,
    "kv-serving": kv_serving,
}
"""By the names that pages ask for."""
