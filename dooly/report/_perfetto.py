"""A simulation as a trace for Perfetto (https://ui.perfetto.dev) or chrome://tracing, in Chrome's trace event format (JSON)."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dooly.simulation import LoggedSteps, RequestTimes, SimulationResult, StepLog

_ENGINE, _REQUESTS = 1, 2
"""Processes of the trace: the device's steps, and the requests."""


def write_perfetto(result: SimulationResult, steps: StepLog, path: Path) -> None:
    """Write a simulation's steps and requests as a Chrome trace; times are microseconds from the run's start.

    The engine's process has a slice a step, with its tokens and requests, and counts both over time; that of the requests has an
    asynchronous slice a request, with its waiting, prefill and decode inside.

    Args:
        result: The simulation.
        steps: Its steps, as `simulate` filled them in.
        path: The file.
    """
    names = {_ENGINE: "engine", _REQUESTS: "requests"}
    with path.open("w", encoding="utf-8") as handle:
        handle.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for pid, name in names.items():
            handle.write(json.dumps({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}) + ",\n")
        for run in steps.runs:
            handle.writelines(json.dumps(event) + ",\n" for event in _step_events(run))
        for row in result.rows:
            handle.writelines(json.dumps(event) + ",\n" for event in _request_events(row))
        handle.write(
            json.dumps({"ph": "M", "pid": _ENGINE, "tid": 1, "name": "thread_name", "args": {"name": "steps"}}) + "\n]}\n"
        )


def _step_events(run: LoggedSteps) -> Iterator[dict[str, Any]]:
    num_tokens, num_reqs = int(run.num_new_tokens.sum()), len(run.num_new_tokens)
    context = int(run.num_computed_tokens.sum())
    own_tokens = run.num_new_tokens if run.num_draft_tokens is None else run.num_new_tokens - run.num_draft_tokens
    name = "decode" if (own_tokens == 1).all() else "prefill" if not (own_tokens == 1).any() else "mixed"
    for step, (start_ns, end_ns) in enumerate(zip(run.starts_ns.tolist(), run.ends_ns.tolist(), strict=True)):
        counts = {"tokens": num_tokens, "requests": num_reqs}
        place = {"pid": _ENGINE, "tid": 1, "ts": start_ns / 1e3}
        details = counts | {"context tokens": context + step * num_reqs}
        yield {"ph": "X", "name": name, "dur": (end_ns - start_ns) / 1e3, "args": details, **place}
        if not step:
            yield {"ph": "C", "name": "batch", "args": counts, **place}


def _request_events(row: RequestTimes) -> Iterator[dict[str, Any]]:
    """Yield a request as nested asynchronous slices."""
    sizes = {"prompt tokens": row.num_prompt_tokens, "output tokens": row.num_output_tokens}
    place = {"pid": _REQUESTS, "tid": 1, "cat": "request", "id": row.request_id}
    whole = place | {"name": f"request {row.request_id}"}
    times_s = (row.arrival_s, row.scheduled_s, row.first_token_s, row.finish_s)
    yield {"ph": "b", "ts": 1e6 * row.arrival_s, "args": sizes, **whole}
    for name, (begin_s, end_s) in zip(("waiting", "prefill", "decode"), pairwise(times_s), strict=True):
        yield {"ph": "b", "ts": 1e6 * begin_s, "name": name, **place}
        yield {"ph": "e", "ts": 1e6 * end_s, "name": name, **place}
    yield {"ph": "e", "ts": 1e6 * row.finish_s, **whole}
