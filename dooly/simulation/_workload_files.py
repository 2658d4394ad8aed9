"""Workload files: Azure 2023 CSV, the CSV that `simulate --csv` writes, and LLMServingSim's JSONL.

The header, or the suffix `.jsonl`, tells which. A row that breaks a rule is an error naming file and line; none is skipped.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TextIO

from dooly.errors import WorkloadError
from dooly.simulation._workload import NS_PER_S, Request, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
DOOLY_COLUMNS = ("request_id", "arrival_s", "num_prompt_tokens", "num_output_tokens")
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 -- the traces' times carry no zone
JSONL_KEYS = ("input_toks", "output_toks", "arrival_time_ns")


def read_workload(path: Path, *, limit: int | None = None, rate_scale: float = 1.0, max_tokens: int | None = None) -> Workload:
    """Read a workload file.

    Args:
        path: Azure 2023 CSV, a CSV with Dooly's own columns (others are ignored), or LLMServingSim's JSONL.
        limit: Keep only that many requests, the first in the file.
        rate_scale: Divides all arrival times; 2 doubles the request rate.
        max_tokens: Leave out requests whose prompt and output together are longer.

    Returns:
        The requests, by arrival. Azure's times are taken from the earliest kept row, the others' as they are.

    Raises:
        WorkloadError: The file cannot be read, is of no known kind, or a row breaks a rule.
    """
    if not 0 < rate_scale < math.inf:
        raise WorkloadError(f"rate_scale must be a positive finite number, got {rate_scale}")
    if limit is not None and limit < 1:
        raise WorkloadError(f"limit must be at least 1, got {limit}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            read = _reader_of(path, handle)
            kept = []
            for request in read(path, handle):
                if max_tokens is None or request.num_prompt_tokens + request.num_output_tokens <= max_tokens:
                    kept.append(request)
                    if len(kept) == limit:
                        break
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WorkloadError(
            f"{path}: cannot be read as a text file ({error}); give a workload file or a specification"
        ) from error
    origin_ns = min((request.arrival_ns for request in kept), default=0) if read is _read_azure else 0
    if rate_scale != 1 or origin_ns:
        kept = [replace(r, arrival_ns=round((r.arrival_ns - origin_ns) / rate_scale)) for r in kept]
    return Workload(tuple(sorted(kept, key=lambda request: request.arrival_ns)), str(path))


def _reader_of(path: Path, handle: TextIO) -> Callable[[Path, TextIO], Iterator[Request]]:
    """Return the generator function that reads this kind of file; leaves `handle` at its start."""
    if path.suffix == ".jsonl":
        return _read_jsonl
    header = next(csv.reader([handle.readline()]), [])
    handle.seek(0)
    if set(AZURE_COLUMNS) <= set(header):
        return _read_azure
    if set(DOOLY_COLUMNS) <= set(header):
        return _read_dooly
    raise WorkloadError(
        f"{path}:1: the header must hold {','.join(AZURE_COLUMNS)} or {','.join(DOOLY_COLUMNS)}, "
        f"got {','.join(header)!r}; JSONL files must end in .jsonl"
    )


def _read_azure(path: Path, handle: TextIO) -> Iterator[Request]:
    reader = csv.DictReader(handle)
    for index, row in enumerate(reader):
        place = f"{path}:{reader.line_num}"
        try:
            arrival_ns = _timestamp_ns(row["TIMESTAMP"] or "")
        except (ValueError, TypeError) as error:
            rule = "TIMESTAMP must be YYYY-MM-DD HH:MM:SS.fffffff"
            raise WorkloadError(f"{place}: {rule}, got {row['TIMESTAMP']!r}; correct the row") from error
        prompt = _whole_number(place, "ContextTokens", row["ContextTokens"])
        yield Request(index, arrival_ns, prompt, _whole_number(place, "GeneratedTokens", row["GeneratedTokens"]))


def _timestamp_ns(text: str) -> int:
    """Return nanoseconds since 1970 of a UTC time; the traces have seven decimals, one more than `datetime` keeps."""
    whole, _, fraction = text.removesuffix("+00:00").partition(".")
    if not f"{fraction}0".isdecimal():
        raise ValueError(text)
    seconds = (datetime.fromisoformat(whole) - _EPOCH) // timedelta(seconds=1)
    return seconds * NS_PER_S + int(fraction.ljust(9, "0")[:9])


def _read_dooly(path: Path, handle: TextIO) -> Iterator[Request]:
    reader = csv.DictReader(handle)
    for row in reader:
        place = f"{path}:{reader.line_num}"
        try:
            arrival_s = float(row["arrival_s"])
        except (TypeError, ValueError):
            arrival_s = math.nan
        if not 0 <= arrival_s < math.inf:
            raise WorkloadError(
                f"{place}: arrival_s must be a number of seconds, at least 0, got {row['arrival_s']!r}; correct the row"
            )
        yield Request(
            _whole_number(place, "request_id", row["request_id"], minimum=0),
            round(arrival_s * NS_PER_S),
            _whole_number(place, "num_prompt_tokens", row["num_prompt_tokens"]),
            _whole_number(place, "num_output_tokens", row["num_output_tokens"]),
        )


def _read_jsonl(path: Path, handle: TextIO) -> Iterator[Request]:
    index = 0
    for line_number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        place = f"{path}:{line_number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkloadError(f"{place}: a line must be one JSON object ({error}); correct the line") from error
        if not isinstance(row, dict) or not set(JSONL_KEYS) <= row.keys():
            raise WorkloadError(f"{place}: a line must be a JSON object with {', '.join(JSONL_KEYS)}, got {line.strip()[:80]!r}")
        prompt, output = (_whole_number(place, key, row[key]) for key in ("input_toks", "output_toks"))
        yield Request(index, _whole_number(place, "arrival_time_ns", row["arrival_time_ns"], minimum=0), prompt, output)
        index += 1


def _whole_number(place: str, name: str, value: object, *, minimum: int = 1) -> int:
    """Return a field's integer; `place` and `name` go into the error."""
    try:
        number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or number < minimum:
        raise WorkloadError(f"{place}: {name} must be a whole number of at least {minimum}, got {value!r}; correct the row")
    return number
