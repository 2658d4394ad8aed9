"""How well `/predict` knows a request's latency from counts alone: beside the simulator, which knows every request.

    python benchmarks/predict_states.py [--model M] [--hardware H] [--json FILE]

Serves requests in virtual time at several rates; at each arrival the server's state is what a gateway would see of it, and what
`/predict` makes of that, without and with the mean lengths of requests, is compared with what the request then gets. Prints
relative errors of TTFT and TPOT by rate: median of the absolute, and of the signed ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dooly
from dooly.adapters.service import ServerState, Traffic, server_latencies

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.simulation import SimulationResult

    Floats = npt.NDArray[np.float64]


def _states(result: SimulationResult, capacity: int) -> list[ServerState]:
    """Return what a gateway sees at each arrival: who decodes, who waits, and how full the cache is."""
    rows = list(result.rows)
    arrival, first, finish = (
        np.array([getattr(row, name) for row in rows]) for name in ("arrival_s", "first_token_s", "finish_s")
    )
    prompt, output = (np.array([getattr(row, name) for row in rows]) for name in ("num_prompt_tokens", "num_output_tokens"))
    found = []
    for index, now_s in enumerate(arrival):
        running, waiting = (first <= now_s) & (finish > now_s), (arrival <= now_s) & (first > now_s)
        waiting[index] = False
        done = np.clip((now_s - first) / np.maximum(finish - first, 1e-9), 0, 1) * output
        tokens = float((prompt + done)[running].sum())
        found.append(
            ServerState(
                input_token_length=int(prompt[index]),
                num_request_running=int(running.sum()),
                num_request_waiting=int(waiting.sum()),
                kv_cache_percentage=min(tokens / capacity, 1.0),
                prefill_tokens_in_flight=int(prompt[waiting].sum()),
            )
        )
    return found


def _errors(predicted: Floats, real: Floats) -> dict[str, float]:
    errors = predicted / real - 1
    return {"median_absolute": round(float(np.median(np.abs(errors))), 4), "median": round(float(np.median(errors)), 4)}


def main() -> None:
    """Compare at several rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--hardware", default="h200")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    model = dooly.find_model(asked.model)
    serving = dooly.default_serving(model, asked.hardware)
    latency = dooly.load_latency_model(model=model, serving=serving, hardware=asked.hardware)
    config = dooly.scheduler_config(serving, latency)
    capacity = (config.num_kv_blocks - 1) * config.block_size
    lines: list[dict[str, Any]] = []
    for rate in (2, 8, 16, 24):
        workload = dooly.parse_workload(f"poisson:rate={rate},requests=1000,prompt=128-2048,output=64-512,seed=0")
        result = dooly.simulate(workload, latency, config)
        states, rows = _states(result, capacity), list(result.rows)
        ttft = np.array([row.first_token_s - row.arrival_s for row in rows])
        tpot = np.array([(row.finish_s - row.first_token_s) / max(row.num_output_tokens - 1, 1) for row in rows])
        running = round(float(np.mean([state.num_request_running for state in states])), 1)
        line: dict[str, Any] = {"rate_per_s": rate, "mean_running": running}
        for name, traffic in (("counts", None), ("counts_and_means", Traffic(1088, 288))):
            predicted = np.array(server_latencies(latency, config, states, traffic))
            line[name] = {"ttft": _errors(predicted[:, 0], ttft), "tpot": _errors(predicted[:, 1], tpot)}
        lines.append(line)
    text = json.dumps({"model": asked.model, "hardware": asked.hardware, "rates": lines}, indent=2)
    print(text)
    if asked.json is not None:
        asked.json.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
