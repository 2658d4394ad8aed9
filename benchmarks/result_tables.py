"""Write the tables of pages that are made of results: `python benchmarks/result_tables.py` brings all pages up to date.

A page says where with `<!-- table NAME -->` ahead of a table and `<!-- end of NAME -->` behind it; `TABLES` has the names. A new
table is a function here that yields rows, the head first, and these two lines in a page. A test holds every page to its results.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from dooly.kv_policy import KEPT_BY, NUM_DENSE_LAYERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
_PLACE = re.compile(r"<!-- table (?P<name>[\w-]+) -->\n.*?<!-- end of (?P=name) -->", re.DOTALL)
_WORKLOADS = {"light": "light", "near-saturation": "near saturation", "long-prompts": "long prompts"}
_LOADS = {
    "llama-3.1-8b.FLASH_ATTN.default.medium": "Llama 3.1 8B, 12 requests a second",
    "llama-3.1-8b.FLASH_ATTN.default.heavy": "Llama 3.1 8B, 32 a second, near saturation",
    "qwen2.5-7b.FLASH_ATTN.default.long": "Qwen2.5 7B, not profiled, prompts of 2,048 to 7,000 tokens, 3 a second",
    "llama-3.1-8b-fp8.FLASH_ATTN.default.medium": "Llama 3.1 8B in FP8, 12 a second",
    "llama-3.1-8b-fp8.FLASH_ATTN.default.heavy": "Llama 3.1 8B in FP8, 32 a second",
    "qwen3-30b-a3b.FLASH_ATTN.default.medium": "Qwen3 30B A3B, 128 experts, 12 a second",
}
_SLOWER = "shipped, slower host"
_SOURCES = {
    "shipped": "what ships",
    _SLOWER: "what ships, `--host-slowdown {:.2f}`",
    "imported": "imported tables",
    "own": "own records",
}
_SERVED = {
    "meta-llama/Llama-3.1-70B": "Llama 3.1 70B, FP8",
    "openai/gpt-oss-120b": "gpt-oss 120B, MXFP4",
    "MiniMaxAI/MiniMax-M2.5": "MiniMax M2.5, FP8 in blocks",
}
_RUNS = {"llama-3.1-8b": "Llama 3.1 8B, one rank", "qwen3-32b": "Qwen3 32B, two ranks"}
_PEER_STATISTICS = {"mean": "Mean", "p50": "Median", "p90": "P90", "p99": "P99"}
_PEERS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "vidur": (
        ["Vidur's latencies from"],
        {"predictor": ["the installed predictor"], "profiles": ["its random forest on exported profiles"]},
    ),
    "llmservingsim-served": (
        ["latencies", "simulated by"],
        {
            "own_bundle": ["LLMServingSim's bundle", "LLMServingSim"],
            "exported": ["Dooly's bundle", "LLMServingSim"],
            "dooly": ["Dooly", "Dooly"],
        },
    ),
    "mocker": (
        ["simulated by"],
        {
            "mocker": ["mocker"],
            "dooly": ["Dooly, scheduling a step while another runs, as vLLM does on a GPU"],
            "dooly_scheduling_after_each_step": ["Dooly, scheduling when a step has run"],
        },
    ),
    "aisimulate": (["simulated by"], {"aisimulate": ["AISimulate"], "dooly_without_host": ["Dooly, without its host's times"]}),
    "hisim": (
        ["latencies", "scheduled by"],
        {
            "own_latencies": ["HiSim's, by aiconfigurator's tables of SGLang", "SGLang"],
            "dooly_latencies": ["Dooly's, by aiconfigurator's tables of vLLM", "SGLang"],
            "dooly_latencies_mixed": ["Dooly's", "SGLang, prompts beside decodes (`--enable-mixed-chunk`)"],
            "dooly": ["Dooly's", "Dooly, a step while another runs"],
            "dooly_scheduling_after_each_step": ["Dooly's", "Dooly, when a step has run"],
        },
    ),
    "blis": (["simulated by"], {"blis": ["BLIS"], "dooly_scheduling_after_each_step": ["Dooly"]}),
}
_PEER_MEANS: dict[str, tuple[str, Callable[[float], str]]] = {
    "ttft_s": ("mean time to first token", lambda seconds: f"{1e3 * seconds:.1f} ms"),
    "tpot_s": ("per output token", lambda seconds: f"{1e3 * seconds:.2f} ms"),
    "e2e_s": ("end to end", lambda seconds: f"{seconds:.3f} s"),
    "duration_s": ("all", lambda seconds: f"{seconds:.2f} s"),
}
_FAMILIES = {"linear": "linear layers", "decodes": "decodes", "prefills": "prefills", "experts": "experts (models)"}


def main() -> None:
    """Bring every page up to date."""
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        if (made := filled(text)) != text:
            page.write_text(made)
            print(page)


def filled(text: str) -> str:
    """Return a page with its tables made anew."""

    def made(place: re.Match[str]) -> str:
        name = place["name"]
        head, *rows = TABLES[name]()
        shown = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (head, *rows)]
        table = "\n".join([shown[0], "|---" * len(head) + "|", *shown[1:]])
        return f"<!-- table {name} -->\n\n{table}\n\n<!-- end of {name} -->"

    return _PLACE.sub(made, text)


def _read(name: str) -> Any:  # noqa: ANN401 - a document
    return json.loads((HERE / "results" / name).read_text())


def _percent(value: float, *, digits: int = 1, sign: bool = True) -> str:
    return f"{100 * value:{'+' if sign else ''}.{digits}f} %"


def serving_cpu() -> Iterator[list[str]]:
    """Yield `dooly validate` on a CPU: the real engine, the simulation and the noise of both metrics, by workload."""
    yield ["workload", "", "real mean", "simulated mean", "error of the mean", "MAPE", "noise"]
    for name, workload in _WORKLOADS.items():
        found = _read(f"cpu/validate-qwen2.5-0.5b-{name}.json")
        for metric in ("ttft", "tpot"):
            real = mean(run[f"{metric}_s"]["mean"] for run in found["real_runs"])
            simulated, errors = found["simulated"][f"{metric}_s"]["mean"], found[metric]
            times = [f"{1e3 * seconds:.0f} ms" for seconds in (real, simulated)]
            told = [_percent(errors["mean_error"]), *(_percent(errors[key], sign=False) for key in ("mape", "noise"))]
            yield [workload if metric == "ttft" else "", metric.upper(), *times, *told]


def gpu_runs() -> Iterator[list[str]]:
    """Yield errors against LLMServingSim's real runs, ours and its own below."""
    yield ["", "TTFT mean", "P50", "P90", "P99", "TPOT mean", "P50", "P90", "P99"]
    for run in _read("gpu/truth.json")["runs"]:
        metrics = ("ttft", "tpot")
        yield [
            _RUNS[run["model"]],
            *(_percent(run[metric]["errors"][name]) for metric in metrics for name in _PEER_STATISTICS),
        ]
        yield [
            "the peer",
            *(_percent(run["peer"][f"{metric.upper()} {name}"]) for metric in metrics for name in _PEER_STATISTICS.values()),
        ]


def gpu_loads() -> Iterator[list[str]]:
    """Yield errors against runs on an H200, by what the latencies are from."""
    yield ["load", "predicted by", "TTFT: error of the mean, of a request, noise", "TPOT: the same"]
    found = _read("gpu/h200.json")
    slowdown, loads = found["second"]["host_slowdown"], found["loads"] + found["second"]["loads"]
    for run, name in _LOADS.items():
        told = {load["by"]: load for load in loads if load["run"] == run}
        for place, by in enumerate(source for source in _SOURCES if source in told):
            cells = [
                f"{_percent(told[by][metric]['mean_error'])}, "
                f"{_percent(told[by][metric]['mape'], sign=False)}, {_percent(told[by][metric]['noise'], sign=False)}"
                for metric in ("ttft", "tpot")
            ]
            yield [name if place == 0 else "", _SOURCES[by].format(slowdown), *cells]


def gpu_servers() -> Iterator[list[str]]:
    """Yield errors against other people's servers, beside aiconfigurator's; in brackets the rows that it answers."""
    yield ["", "rows", "TTFT", "aiconfigurator", "TPOT", "aiconfigurator"]
    table = _read("gpu/silicon-h200.json")["table"]
    for model, name in _SERVED.items():
        for row in (row for row in table if row["model"] == model):
            ranks = {"all": "all", "1": "1 rank"}.get(row["ranks"], f"{row['ranks']} ranks")
            rows = row["ours"]["ttft"]["rows"]
            answered = (row["peer"]["ttft"] or row["ours"]["ttft"])["rows"]
            cells = [_mape_and_bias(row[who][metric]) for metric in ("ttft", "tpot") for who in ("ours", "peer")]
            yield [f"{name}, {ranks}", f"{rows}" if answered == rows else f"{rows} ({answered})", *cells]


def _mape_and_bias(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{_percent(found['mape'], sign=False)} ({_percent(found['bias'])})"


def families_known() -> Iterator[list[str]]:
    """Yield each family's error on configurations held out, by how many are known: medians of three splits."""
    yield ["", "configurations known", "median", "90th percentile"]
    rows = _read("gpu/families-h200.json")["rows"]
    for family, name in _FAMILIES.items():
        told = [row for row in rows if row["family"] == family]
        yield [
            name,
            ", ".join(str(row["known"]) for row in told),
            ", ".join(_percent(median(row["median"]), sign=False) for row in told),
            ", ".join(_percent(median(row["p90"]), digits=0, sign=False) for row in told),
        ]


def predict_counts() -> Iterator[list[str]]:
    """Yield errors of `/predict` by counts, without and with the means of the requests' lengths."""
    yield ["requests a second, mean running", *(f"{m} {by}" for by in ("by counts", "with the means") for m in ("TTFT", "TPOT"))]
    for row in _read("peers/predict-states.json")["rates"]:
        pairs = [row[by][metric] for by in ("counts", "counts_and_means") for metric in ("ttft", "tpot")]
        cells = [f"{_percent(p['median'], digits=0)}, {_percent(p['median_absolute'], digits=0, sign=False)}" for p in pairs]
        yield [f"{row['rate_per_s']}, {row['mean_running']}", *cells]


def peer(name: str) -> Iterator[list[str]]:
    """Yield means of the requests that another simulator served on Dooly's latencies, and what stands beside them."""
    found, (head, rows) = _read(f"peers/{name}.json"), _PEERS[name]
    shown = [key for key in _PEER_MEANS if key in found[next(iter(rows))]]
    yield [*head, *(_PEER_MEANS[key][0] for key in shown)]
    for row, cells in rows.items():
        yield [*cells, *(_PEER_MEANS[key][1](found[row][key]) for key in shown)]


def profiles_cpu() -> Iterator[list[str]]:
    """Yield fresh profiles of a stated length against the real engine: errors of the means, each with its noise, by workload."""
    yield ["model, profile", "workload", "TTFT (noise), by profile", "TPOT (noise), by profile", "all steps together"]
    for file in sorted((HERE / "results" / "cpu").glob("serving-accuracy-*.json")):
        found = _read(f"cpu/{file.name}")
        model = found["rows"][0]["model"]
        shown = f"{model}, {found['budget_s']:.0f} s, {found['dtype']}"
        assert all(row["model"] == model for row in found["rows"])
        for workload in dict.fromkeys(row["workload"] for row in found["rows"]):
            rows = [row for row in found["rows"] if row["workload"] == workload]
            errors = [
                ", ".join(f"{_percent(row[metric]['mean_error'])} ({_percent(row[metric]['noise'], sign=False)})" for row in rows)
                for metric in ("ttft", "tpot")
            ]
            yield [shown, workload, *errors, ", ".join(_percent(row["step"]["mean_error"]) for row in rows)]
            shown = ""


def cost_cpu() -> Iterator[list[str]]:
    """Yield what profiling took on a CPU's engine, each model alone on the whole grid and all into one store."""
    yield ["model", "alone, whole grid", "Dooly, one store", "less", "steps left out: median error, 90th percentile"]
    found = _read("cpu/profiling-cost.json")
    for row in found["models"]:
        seconds = [f"{row[side]:.0f} s" for side in ("alone_s", "dooly_s")]
        errors = ", ".join(_percent(row[key], sign=False) for key in ("median", "p90"))
        saved = _percent(1 - row["dooly_s"] / row["alone_s"], sign=False)
        yield [row["model"], *seconds, saved, f"{errors} ({row['steps']} steps)"]
    yield ["both", *(f"{found[side]:.0f} s" for side in ("alone_s", "dooly_s")), _percent(found["saved"], sign=False), ""]


def overview() -> Iterator[list[str]]:
    """Yield the errors of TTFT and TPOT of all comparisons with real engines, each with its device and command."""
    yield ["compared with", "device", "TTFT", "TPOT", "by"]
    for run in _read("gpu/truth.json")["runs"]:
        errors = [f"{_percent(run[metric]['errors']['mean'])} of the mean" for metric in ("ttft", "tpot")]
        yield [f"vLLM 0.19, {_RUNS[run['model']]}, 300 requests", "RTX PRO 6000", *errors, "`benchmarks/gpu_truth.py`"]
    found = _read("gpu/h200.json")
    loads = {(load["run"], load["by"]): load for load in found["loads"] + found["second"]["loads"]}
    hosts = {"shipped": "", _SLOWER: f", host {found['second']['host_slowdown']:.2f} times as slow"}
    for run, name in _LOADS.items():
        for by in (by for by in hosts if (run, by) in loads):
            errors = [f"{_percent(loads[run, by][metric]['mean_error'])} of the mean" for metric in ("ttft", "tpot")]
            yield [f"vLLM 0.26, {name}{hosts[by]}", "H200", *errors, "`benchmarks/h200_truth.py`"]
    table = {row["model"]: row for row in _read("gpu/silicon-h200.json")["table"] if row["ranks"] == "all"}
    for model, name in _SERVED.items():
        ours = table[model]["ours"]
        errors = [f"{_percent(ours[metric]['mape'], sign=False)} MAPE" for metric in ("ttft", "tpot")]
        yield [
            f"servers of others, {name}, {ours['ttft']['rows']} rows, 1 to 8 ranks",
            "H200",
            *errors,
            "`benchmarks/silicon_truth.py`",
        ]
    for name, workload in _WORKLOADS.items():
        found = _read(f"cpu/validate-qwen2.5-0.5b-{name}.json")
        shares = [[_percent(found[metric][key], sign=False) for key in ("mape", "noise")] for metric in ("ttft", "tpot")]
        errors = [f"{mape} MAPE (noise {noise})" for mape, noise in shares]
        yield [f"vLLM 0.32, Qwen2.5 0.5B, {workload}", "AMD EPYC, 2 cores", *errors, "`dooly validate`"]


def kv_serving() -> Iterator[list[str]]:
    """Yield what users of each policy see, by length of prompts, and attention's error at the same budget, where it acts."""
    found, errors = _read("gpu/kv-serving-h200.json")["rows"], _read("cpu/kv-error-llama-3.1-8b.json")["errors"]
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
        error = _percent(mean(layer["output"] for layer in acting), sign=False) if acting else "0"
        yield [policy if policy == "none" else f"`{policy}`", *cells, error]


def kv_cost() -> Iterator[list[str]]:
    """Yield what CritiPrefill's attention and LaProx's selection take on a CPU, by length of prompts."""
    yield [
        *("tokens", "whole attention", "CritiPrefill", "FLOPs fall", "time falls"),
        *("LaProx selection, one layer", "its closed form", "ratio"),
    ]
    found = _read("cpu/kv-cost.json")
    for attention, selection in zip(found["prefill"], found["selection"], strict=True):
        flops, seconds = ([attention[f"{how}_{what}"] for how in ("whole", "sparse")] for what in ("flops", "s"))
        yield [
            f"{attention['num_tokens']:,}",
            *(f"{number / 1e9:.1f} GFLOP, {taken:.2f} s" for number, taken in zip(flops, seconds, strict=True)),
            *(f"{whole / sparse:.2f}x" for whole, sparse in (flops, seconds)),
            *(f"{1e3 * selection[name]:.1f} ms" for name in ("measured_s", "closed_form_s")),
            f"{selection['measured_s'] / selection['closed_form_s']:.2f}",
        ]


TABLES: dict[str, Callable[[], Iterator[list[str]]]] = {
    "overview": overview,
    "serving-cpu": serving_cpu,
    "profiles-cpu": profiles_cpu,
    "cost-cpu": cost_cpu,
    "gpu-runs": gpu_runs,
    "gpu-loads": gpu_loads,
    "gpu-servers": gpu_servers,
    "families-known": families_known,
    "predict-counts": predict_counts,
    **{f"peer-{name}": partial(peer, name) for name in _PEERS},
    "kv-serving": kv_serving,
    "kv-cost": kv_cost,
}
"""What a page can ask for, by name."""


if __name__ == "__main__":
    main()
