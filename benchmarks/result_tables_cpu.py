"""Rows of tables about this project's CPUs: `result_tables.py` puts them into pages."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING

from result_files import RESULTS, percent, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKLOADS = {"light": "light", "near-saturation": "near saturation", "long-prompts": "long prompts"}


def serving_cpu() -> Iterator[list[str]]:
    """Yield `dooly validate` on a CPU: the real engine, the simulation and the noise of both metrics, by workload."""
    yield ["workload", "", "real mean", "simulated mean", "error of the mean", "MAPE", "noise"]
    for name, workload in WORKLOADS.items():
        found = read(f"cpu/validate-qwen2.5-0.5b-{name}.json")
        for metric in ("ttft", "tpot"):
            real = mean(run[f"{metric}_s"]["mean"] for run in found["real_runs"])
            simulated, errors = found["simulated"][f"{metric}_s"]["mean"], found[metric]
            times = [f"{1e3 * seconds:.0f} ms" for seconds in (real, simulated)]
            told = [percent(errors["mean_error"]), *(percent(errors[key], sign=False) for key in ("mape", "noise"))]
            yield [workload if metric == "ttft" else "", metric.upper(), *times, *told]


def profiles_cpu() -> Iterator[list[str]]:
    """Yield fresh profiles of a stated length against the real engine: errors of the means, each with its noise, by workload."""
    yield ["model, profile", "workload", "TTFT (noise), by profile", "TPOT (noise), by profile", "all steps together"]
    for file in sorted((RESULTS / "cpu").glob("serving-accuracy-*.json")):
        found = read(f"cpu/{file.name}")
        model = found["rows"][0]["model"]
        same = ", the same requests each time" if "within_all" in found else ""
        shown = f"{model}, {found['budget_s']:.0f} s, {found['dtype']}{same}"
        assert all(row["model"] == model for row in found["rows"])
        for workload in dict.fromkeys(row["workload"] for row in found["rows"]):
            rows = [row for row in found["rows"] if row["workload"] == workload]
            errors = [", ".join(_error_and_noise(row[metric]) for row in rows) for metric in ("ttft", "tpot")]
            yield [shown, workload, *errors, ", ".join(percent(row["step"]["mean_error"]) for row in rows)]
            shown = ""


def _error_and_noise(found: dict[str, float]) -> str:
    """Show an error of the mean with the noise of its own two runs and, where it is told, that between repeats."""
    noises = [percent(found[key], sign=False) for key in ("noise", "noise_between_repeats") if key in found]
    return f"{percent(found['mean_error'])} ({', '.join(noises)})"


def cost_cpu() -> Iterator[list[str]]:
    """Yield what profiling took on a CPU's engine, each model alone on the whole grid and all into one store."""
    yield ["model", "alone, whole grid", "Dooly, one store", "less", "steps left out: median error, 90th percentile"]
    found = read("cpu/profiling-cost.json")
    for row in found["models"]:
        took = (row["alone_s"], row["dooly_s"])
        yield [row["model"], *_saved(*took), f"{_quantiles(row['median'], row['p90'])} ({row['steps']} steps)"]
    yield ["all", *_saved(found["alone_s"], found["dooly_s"]), ""]


def cost_replayed() -> Iterator[list[str]]:
    """Yield what sweeps would have run of whole grids that were measured on a CPU's engine, by the engine's limits."""
    left_out = [f"{what} left out: median error, 90th percentile" for what in ("steps", "operations")]
    yield ["tokens a request, a step; requests", "model", "batches: grid, Dooly", "whole grid", "Dooly", "less", *left_out]
    for file in sorted((RESULTS / "cpu").glob("profiling-replayed*.json"), reverse=True):
        found = read(f"cpu/{file.name}")
        limits = f"{found['max_model_len']:,}, {found['max_num_batched_tokens']:,}; {found['max_num_seqs']}"
        for row in found["models"]:
            errors = [_quantiles(row["median"], row["p90"]), _quantiles(*row["operations"])]
            yield [limits, row["model"], "{}, {}".format(*row["batches"]), *_saved(*row["seconds"]), *errors]
            limits = ""


def _saved(alone_s: float, dooly_s: float) -> list[str]:
    """Show the seconds of both ways, and how much less the second is."""
    return [f"{alone_s:.0f} s", f"{dooly_s:.0f} s", percent(1 - dooly_s / alone_s, sign=False)]


def _quantiles(median: float, p90: float) -> str:
    return f"{percent(median, sign=False)}, {percent(p90, sign=False)}"


def kv_cost() -> Iterator[list[str]]:
    """Yield what CritiPrefill's attention and LaProx's selection take on a CPU, by length of prompts."""
    yield [
        *("tokens", "whole attention", "CritiPrefill", "FLOPs fall", "time falls"),
        *("LaProx selection, one layer", "its closed form", "ratio"),
    ]
    found = read("cpu/kv-cost.json")
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
    "serving-cpu": serving_cpu,
    "profiles-cpu": profiles_cpu,
    "cost-cpu": cost_cpu,
    "cost-replayed": cost_replayed,
    "kv-cost": kv_cost,
}
"""By the names that pages ask for."""
