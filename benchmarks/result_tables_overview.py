"""Rows of tables of everything that was compared with real engines: `result_tables.py` puts them into pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from result_files import percent, read
from result_tables_cpu import WORKLOADS
from result_tables_gpu import LOADS, RUNS, SERVED, SLOWER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_METRICS = ("ttft", "tpot")


def overview() -> Iterator[list[str]]:
    """Yield the errors of TTFT and TPOT of all comparisons with real engines, each with its device and command."""
    yield ["compared with", "device", "TTFT", "TPOT", "by"]
    for run in read("gpu/truth.json")["runs"]:
        errors = [f"{percent(run[metric]['errors']['mean'])} of the mean" for metric in _METRICS]
        yield [f"vLLM 0.19, {RUNS[run['model']]}, 300 requests", "RTX PRO 6000", *errors, "`benchmarks/gpu_truth.py`"]
    found = read("gpu/h200.json")
    loads = {(load["run"], load["by"]): load for load in found["loads"] + found["second"]["loads"]}
    hosts = {"shipped": "", SLOWER: f", host {found['second']['host_slowdown']:.2f} times as slow"}
    for run, name in LOADS.items():
        for by in (by for by in hosts if (run, by) in loads):
            errors = [f"{percent(loads[run, by][metric]['mean_error'])} of the mean" for metric in _METRICS]
            yield [f"vLLM 0.26, {name}{hosts[by]}", "H200", *errors, "`benchmarks/h200_truth.py`"]
    table = {row["model"]: row for row in read("gpu/silicon-h200.json")["table"] if row["ranks"] == "all"}
    for model, name in SERVED.items():
        ours = table[model]["ours"]
        errors = [f"{percent(ours[metric]['mape'], sign=False)} MAPE" for metric in _METRICS]
        yield [
            f"servers of others, {name}, {ours['ttft']['rows']} rows, 1 to 8 ranks",
            "H200",
            *errors,
            "`benchmarks/silicon_truth.py`",
        ]
    for name, workload in WORKLOADS.items():
        found = read(f"cpu/validate-qwen2.5-0.5b-{name}.json")
        shares = [[percent(found[metric][key], sign=False) for key in ("mape", "noise")] for metric in _METRICS]
        errors = [f"{mape} MAPE (noise {noise})" for mape, noise in shares]
        yield [f"vLLM 0.32, Qwen2.5 0.5B, {workload}", "AMD EPYC, 2 cores", *errors, "`dooly validate`"]


def how_true() -> Iterator[list[str]]:
    """Yield README's few rows: against what, on what device, how far the mean of each metric is, with the noise of real runs."""
    yield ["real engine, load", "device", "mean TTFT (noise)", "mean TPOT (noise)"]
    for run in read("gpu/truth.json")["runs"]:
        yield [f"vLLM, {RUNS[run['model']]}", "RTX PRO 6000", *(percent(run[metric]["errors"]["mean"]) for metric in _METRICS)]
    found = read("gpu/h200.json")
    for run, name in LOADS.items():
        told = [load for load in found["loads"] + found["second"]["loads"] if load["run"] == run]
        shipped, slower = (next((load for load in told if load["by"] == by), None) for by in ("shipped", SLOWER))
        errors = [f"{percent(shipped[m]['mean_error'])} ({percent(shipped[m]['noise'], sign=False)})" for m in _METRICS]
        if slower:
            errors = [f"{error}; **{percent(slower[m]['mean_error'])}**" for error, m in zip(errors, _METRICS, strict=True)]
        yield [f"vLLM, {name}", "H200", *errors]
    for model, ours in ((row["model"], row["ours"]) for row in read("gpu/silicon-h200.json")["table"] if row["ranks"] == "all"):
        errors = [f"{percent(ours[metric]['mape'], sign=False)}, unsigned" for metric in _METRICS]
        yield [f"others' servers, {SERVED[model]}, 1 to 8 ranks", "H200", *errors]


TABLES: dict[str, Callable[[], Iterator[list[str]]]] = {
    "overview": overview,
    "how-true": how_true,
}
"""By the names that pages ask for."""
