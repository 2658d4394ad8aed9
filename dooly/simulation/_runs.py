"""Runs of real engines as other tools keep them, and results of our own: each request's times, read from a file.

LLMServingSim's `vllm-requests.jsonl`, `vllm bench serve --save-result --save-detailed`, and the CSV of `dooly simulate --csv`.
"""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.errors import InvalidInputError
from dooly.simulation._results import RequestTimes, SimulationResult
from dooly.simulation._token_gaps import TokenGaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

STAMPED_KEYS = ("input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")
BENCH_KEYS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")
_DIGITS = 9


def read_run(path: Path) -> SimulationResult:
    """Read what happened to each request of a run; requests are numbered by when they were sent, times count from the first.

    Args:
        path: LLMServingSim's JSONL of stamps, a detailed JSON result of `vllm bench serve`, or the CSV of `dooly simulate --csv`.

    Raises:
        InvalidInputError: The file cannot be read, is of no such kind, or a request of it failed or has impossible times.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return _numbered(_stamped(path, text))
        if path.suffix == ".json":
            return _bench(path, json.loads(text))
        return _own(path, text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{path}: cannot be read as a run ({error}); give {_KINDS}") from error
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{path}: holds no run ({error!r}); give {_KINDS}") from error


_KINDS = "LLMServingSim's requests.jsonl, a result of `vllm bench serve --save-detailed`, or a CSV of `dooly simulate --csv`"


def _stamped(path: Path, text: str) -> Iterable[RequestTimes]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            row: Mapping[str, Any] = json.loads(line)
            missing = [key for key in STAMPED_KEYS if key not in row]
            if missing:
                raise InvalidInputError(f"{path}:{number}: lacks {missing[0]}; a line of a run holds {', '.join(STAMPED_KEYS)}")
            queued, first, last = (float(row[key]) for key in ("queued_ts", "first_token_ts", "last_token_ts"))
            scheduled = float(row.get("scheduled_ts", queued))
            yield RequestTimes(number, queued, row["input_toks"], row["output_toks"], scheduled, first, last)


def _bench(path: Path, found: Any) -> SimulationResult:  # noqa: ANN401 - JSON
    """Return a detailed result of `vllm bench serve`; it does not tell when a request was first scheduled."""
    missing = [key for key in BENCH_KEYS if not isinstance(found, dict) or key not in found]
    if missing:
        raise InvalidInputError(f"{path}: lacks {missing[0]}; run `vllm bench serve` with --save-result --save-detailed")
    failed = sum(bool(error) for error in found.get("errors", ()))
    if failed:
        raise InvalidInputError(f"{path}: {failed} of {len(found['errors'])} requests failed; compare with a run that has none")
    rows, gaps = [], []
    columns = (found[key] for key in ("input_lens", "output_lens", "ttfts", "itls", "start_times"))
    for number, (prompt, output, ttft, itls, start) in enumerate(zip(*columns, strict=True)):
        first = start + ttft
        rows.append(RequestTimes(number, start, prompt, output, start, first, first + sum(itls)))
        gaps += itls
    every = np.rint(1e9 * np.array(gaps)).astype(np.int64)
    return _numbered(rows, TokenGaps(every, np.ones_like(every)))


def _own(path: Path, text: str) -> SimulationResult:
    names = [field.name for field in fields(RequestTimes)]
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in names if name not in (reader.fieldnames or ())]
    if missing:
        raise InvalidInputError(f"{path}: lacks the column {missing[0]}; give {_KINDS}")
    whole = {"request_id", "num_prompt_tokens", "num_output_tokens"}
    rows: list[Any] = [[(int if name in whole else float)(row[name]) for name in names] for row in reader]
    return _numbered([RequestTimes(*row) for row in rows])


def _numbered(rows: Iterable[RequestTimes], gaps: TokenGaps | None = None) -> SimulationResult:
    ordered = sorted(rows, key=lambda row: (row.arrival_s, row.request_id))
    if not ordered:
        raise InvalidInputError(f"run: holds no request; give {_KINDS}")
    origin = ordered[0].arrival_s
    moved = (
        RequestTimes(
            number,
            *(round(row.arrival_s - origin, _DIGITS), row.num_prompt_tokens, row.num_output_tokens),
            *(round(time_s - origin, _DIGITS) for time_s in (row.scheduled_s, row.first_token_s, row.finish_s)),
        )
        for number, row in enumerate(ordered)
    )
    return SimulationResult(tuple(moved), 0, 0, 0.0, gaps)
