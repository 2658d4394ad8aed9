"""Runs of the real engine, kept in a file: what simulations are judged by where the device is not at hand.

A file is xz-compressed JSON. Of each step it holds start, duration and, to stay small, only the requests whose work differs from
one decode after their last step, those that are gone, and what a step works on a second time.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any

from dbstore import Environment
from dooly.engines import ServingConfig
from dooly.errors import InvalidInputError
from dooly.simulation import RequestTimes, SimulationResult
from dooly.validation._machine import MachineState
from dooly.validation._real import StepRun

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SCHEMA = 1
_DIGITS = 9
"""Of a time in seconds: Dooly's clock counts nanoseconds."""


@dataclass(frozen=True, slots=True)
class ServedRun:
    """One pass of a workload through the real engine."""

    result: SimulationResult
    """When each request got its tokens."""
    steps: tuple[StepRun, ...]
    """What each step worked on, and how long it took."""


@dataclass(frozen=True, slots=True)
class KeptRuns:
    """Runs of one workload on one engine."""

    model: str
    """Name of the model."""
    workload: str
    """The workload, as `--workload` takes it."""
    serving: ServingConfig
    """How the model was served."""
    environment: Environment
    """What the engine ran on."""
    num_kv_blocks: int
    """Blocks in the engine's KV cache, the null block included."""
    machine: MachineState
    """What the machine did during the runs."""
    runs: tuple[ServedRun, ...]
    """At least one; all served the same requests."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InvalidInputError("KeptRuns: no run; keep at least one")
        for name in ("speculative_config", "kv_policy"):
            if getattr(self.serving, name) is not None:
                raise InvalidInputError(f"KeptRuns: serving has a {name}, which real runs here do not have; leave it out")
        # In a closed loop a request arrives when the one before it has ended: at another time in each run.
        if len({tuple(_request(row)[1:] for row in run.result.rows) for run in self.runs}) > 1:
            raise InvalidInputError(
                "KeptRuns: the runs served different requests; keep those of each workload in a file of their own"
            )

    @property
    def requests(self) -> tuple[tuple[tuple[float, int, int], ...], ...]:
        """Arrival in seconds, prompt tokens and output tokens of each request, a run an entry."""
        return tuple(tuple(map(_request, run.result.rows)) for run in self.runs)


def _request(row: RequestTimes) -> tuple[float, int, int]:
    return row.arrival_s, row.num_prompt_tokens, row.num_output_tokens


def write_runs(kept: KeptRuns, path: Path) -> None:
    """Write runs to a file; it appears whole or not at all."""
    document = {
        "schema": _SCHEMA,
        "model": kept.model,
        "workload": kept.workload,
        "serving": asdict(kept.serving),
        "environment": kept.environment.to_json(),
        "num_kv_blocks": kept.num_kv_blocks,
        "others_cores": kept.machine.others_cores,
        "products_ns": kept.machine.products_ns,
        "runs": [_run_to_json(run) for run in kept.runs],
    }
    aside = path.with_name(f"{path.name}.part")
    aside.write_bytes(lzma.compress(json.dumps(document, separators=(",", ":")).encode()))
    aside.replace(path)


def read_runs(path: Path) -> KeptRuns:
    """Return the runs that `write_runs` wrote.

    Raises:
        InvalidInputError: The file holds none.
    """
    try:
        document = json.loads(lzma.decompress(path.read_bytes()))
        if document["schema"] != _SCHEMA:
            raise InvalidInputError(f"schema {document['schema']} is not {_SCHEMA}, which this Dooly reads")
        return KeptRuns(
            document["model"],
            document["workload"],
            ServingConfig(
                **{"enable_prefix_caching": False} | document["serving"]
            ),  # as it was for whom it was not yet a setting
            Environment.from_json(document["environment"]),
            document["num_kv_blocks"],
            MachineState(document["others_cores"], tuple(document.get("products_ns") or ()) or None),
            tuple(map(_run_from_json, document["runs"])),
        )
    except (OSError, lzma.LZMAError, ValueError, LookupError, TypeError) as error:
        raise InvalidInputError(f"{path}: holds no kept runs ({error}); make it with benchmarks/ground_truth.py") from error


def _run_to_json(run: ServedRun) -> dict[str, Any]:
    result = run.result
    rows = [[round(value, _DIGITS) if isinstance(value, float) else value for value in astuple(row)] for row in result.rows]
    return {
        "requests": rows,
        "num_steps": result.num_steps,
        "num_preemptions": result.num_preemptions,
        "wall_s": result.wall_s,
        "steps": list(_changes(run.steps)),
    }


def _run_from_json(document: Any) -> ServedRun:  # noqa: ANN401 - parsed JSON
    rows = tuple(RequestTimes(*row) for row in document["requests"])
    result = SimulationResult(rows, document["num_steps"], document["num_preemptions"], document["wall_s"])
    return ServedRun(result, tuple(_steps(document["steps"])))


def _changes(steps: Iterable[StepRun]) -> Iterable[list[Any]]:
    """Yield each step as start, duration, the requests whose work is new, those that are gone, and what comes a second time."""
    expected: dict[int, tuple[int, int]] = {}
    for step in steps:
        now: dict[int, tuple[int, int]] = {}
        again = []
        for place, *work in step.work:
            if place in now:
                again.append([place, *work])
            else:
                now[place] = (work[0], work[1])
        changed = [[place, *work] for place, work in now.items() if expected.get(place) != work]
        gone = [place for place in expected if place not in now]
        times = [round(step.start_s, _DIGITS), round(step.duration_s, _DIGITS)]
        yield [*times, changed, gone, *([again] if again else [])]
        expected = _decoded(now, again)


def _steps(changes: Iterable[Any]) -> Iterable[StepRun]:
    """Yield the steps that `_changes` wrote; the requests of a step come in the order in which they joined."""
    expected: dict[int, tuple[int, int]] = {}
    for start_s, duration_s, changed, gone, *more in changes:
        now = {place: work for place, work in expected.items() if place not in gone}
        now |= {place: (new, computed) for place, new, computed in changed}
        again = more[0] if more else []
        work = [(place, *tokens) for place, tokens in now.items()] + [tuple(entry) for entry in again]
        yield StepRun(start_s, duration_s, tuple(work))
        expected = _decoded(now, again)


def _decoded(now: dict[int, tuple[int, int]], again: list[list[int]]) -> dict[int, tuple[int, int]]:
    """Return what each request works on if it decodes one token after a step."""
    last = now | {place: (new, computed) for place, new, computed in again}
    return {place: (1, new + computed) for place, (new, computed) in last.items()}
