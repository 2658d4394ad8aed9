"""Workload files: Azure, BurstGPT, Vidur and Splitwise CSV, our own, LLMServingSim's and Mooncake's JSONL, and real runs.

The header tells which, or the suffix and the keys of the first line. A row that breaks a rule is an error naming file and line;
what is left out is counted and said.
"""

from __future__ import annotations

import csv
import json
import math
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from dooly.errors import InvalidInputError, WorkloadError, spell
from dooly.simulation._columns import gathered
from dooly.simulation._runs import STAMPED_KEYS, read_run
from dooly.simulation._workload import NS_PER_S, PLAIN, SHARING, Request, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
DOOLY_COLUMNS = ("request_id", "arrival_s", "num_prompt_tokens", "num_output_tokens")
_ANY = -(1 << 31)
"""The least that a whole number may be where any will do."""
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 -- the traces' times carry no zone
VIDUR_COLUMNS = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")
SPLITWISE_COLUMNS = ("arrival_timestamp", "prompt_size", "token_size")
BURST_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
_KNOWN_COLUMNS = (AZURE_COLUMNS, DOOLY_COLUMNS, VIDUR_COLUMNS, SPLITWISE_COLUMNS, BURST_COLUMNS)
JSONL_KEYS = ("input_toks", "output_toks", "arrival_time_ns")
MOONCAKE_BLOCK_SIZE = 512
_LATEST_NS = 1 << 62
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length", "hash_ids")


def read_workload(  # noqa: PLR0913 -- what one may ask of a trace
    path: Path,
    *,
    limit: int | None = None,
    rate_scale: float = 1.0,
    max_tokens: int | None = None,
    start_s: float = 0.0,
    end_s: float = math.inf,
) -> Workload:
    """Read a workload file.

    Args:
        path: Azure 2023 or 2024, BurstGPT, Vidur or Splitwise CSV, a CSV with Dooly's own columns (`priority` may be
            among them; others are ignored),
            LLMServingSim's or Mooncake's JSONL, or a real run as `read_run` takes it, whose requests arrive when they were sent.
            Mooncake's alone says which prompts begin alike; those of others are taken to share nothing.
        limit: Keep only that many requests, the first in the file.
        rate_scale: Divides all arrival times; 2 doubles the request rate.
        max_tokens: Leave out requests whose prompt and output together are longer.
        start_s: Keep only requests that arrive from then on, in seconds of the file's own time; the workload starts then.
        end_s: Keep only requests that arrive before.

    Returns:
        The requests, by arrival. Azure's times are taken from the earliest row of fitting length, the others' as they are.

    Raises:
        WorkloadError: The file cannot be read, is of no known kind, or a row breaks a rule.
    """
    if not 0 < rate_scale < math.inf:
        raise WorkloadError(f"rate_scale must be a positive finite number, got {rate_scale}")
    if limit is not None and limit < 1:
        raise WorkloadError(f"limit must be at least 1, got {limit}")
    if not 0 <= start_s < end_s:
        raise WorkloadError(f"{path}: start must be at least 0 s and before end, got {start_s:g} and {end_s:g}")
    notes: list[str] = []
    is_slice = start_s > 0 or end_s < math.inf
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            read = _reader_of(path, handle, notes)
            short = (
                r for r in read(path, handle) if max_tokens is None or r.num_prompt_tokens + r.num_output_tokens <= max_tokens
            )
            most = None if is_slice else limit
            own = ("priority",) if read is _read_dooly else SHARING if path.suffix == ".jsonl" else ()
            kept = gathered(Request, islice(short, most), PLAIN + own)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WorkloadError(
            f"{path}: cannot be read as a text file ({error}); give a workload file or a specification"
        ) from error
    arrival_ns = kept.column("arrival_ns")
    origin_ns = arrival_ns.min(initial=_LATEST_NS) if read in _FROM_FIRST else 0
    if is_slice:
        after_ns = arrival_ns - origin_ns - round(start_s * NS_PER_S)
        last_ns = math.inf if math.isinf(end_s) else round((end_s - start_s) * NS_PER_S)
        places = np.flatnonzero((after_ns >= 0) & (after_ns < last_ns))[:limit]
        kept, arrival_ns, origin_ns = kept.take(places), after_ns[places], 0
    if rate_scale != 1 or origin_ns:
        arrival_ns = np.rint((arrival_ns - origin_ns) / rate_scale).astype(np.int64)
    in_order = kept.replaced(arrival_ns=arrival_ns).take(np.argsort(arrival_ns, kind="stable"))
    return Workload(in_order, str(path), notes=tuple(notes))


def _reader_of(path: Path, handle: TextIO, notes: list[str]) -> Callable[[Path, TextIO], Iterator[Request]]:
    """Return the generator function that reads this kind of file; leaves `handle` at its start."""
    first = handle.readline()
    handle.seek(0)
    if path.suffix == ".json":
        return _read_run
    if path.suffix == ".jsonl":
        return _reader_of_lines(first)
    header = next(csv.reader([first], skipinitialspace=True), [])
    if set(AZURE_COLUMNS) <= set(header):
        return _read_azure
    if set(DOOLY_COLUMNS) <= set(header):
        return _read_dooly
    for columns in (VIDUR_COLUMNS, SPLITWISE_COLUMNS):
        if set(columns) <= set(header):
            return partial(_read_seconds, columns)
    if set(BURST_COLUMNS) <= set(header):
        return partial(_read_burst, notes)
    known = " or ".join(",".join(columns) for columns in _KNOWN_COLUMNS)
    raise WorkloadError(f"{path}:1: the header must hold {known}, got {','.join(header)!r}; JSONL files must end in .jsonl")


def _reader_of_lines(first: str) -> Callable[[Path, TextIO], Iterator[Request]]:
    """Return the generator function that reads a file of JSON objects, by its first line."""
    if '"hash_ids"' in first:
        return partial(_read_objects, MOONCAKE_KEYS, _mooncake_request)
    if all(f'"{key}"' in first for key in STAMPED_KEYS):
        return _read_run
    return partial(_read_objects, JSONL_KEYS, _jsonl_request)


def _read_run(path: Path, _handle: TextIO) -> Iterator[Request]:
    try:
        rows = read_run(path).rows
    except InvalidInputError as error:
        raise WorkloadError(str(error)) from error
    for row in rows:
        yield Request(row.request_id, round(row.arrival_s * NS_PER_S), row.num_prompt_tokens, row.num_output_tokens)


def _read_seconds(columns: tuple[str, str, str], path: Path, handle: TextIO) -> Iterator[Request]:
    """Yield requests by columns of arrivals in seconds, prompt tokens and output tokens."""
    arrival, prompt, output = columns
    reader = csv.DictReader(handle, skipinitialspace=True)
    for index, row in enumerate(reader):
        place = f"{path}:{reader.line_num}"
        num_prompt_tokens, num_output_tokens = (_whole_number(place, name, row[name]) for name in (prompt, output))
        yield Request(index, _seconds_ns(place, arrival, row[arrival]), num_prompt_tokens, num_output_tokens)


def _read_burst(notes: list[str], path: Path, handle: TextIO) -> Iterator[Request]:
    """Yield BurstGPT's requests; those without response tokens failed, and are left out."""
    reader = csv.DictReader(handle, skipinitialspace=True)
    failed = 0
    for index, row in enumerate(reader):
        place = f"{path}:{reader.line_num}"
        output = _whole_number(place, "Response tokens", row["Response tokens"], minimum=0)
        if output == 0:
            failed += 1
            continue
        arrival_ns = _seconds_ns(place, "Timestamp", row["Timestamp"])
        yield Request(index, arrival_ns, _whole_number(place, "Request tokens", row["Request tokens"]), output)
    if failed:
        notes.append(f"{path}: {failed} failed request{'s' if failed > 1 else ''} without response tokens left out")


def _read_azure(path: Path, handle: TextIO) -> Iterator[Request]:
    reader = csv.DictReader(handle, skipinitialspace=True)
    others = [name for name in reader.fieldnames or () if name not in AZURE_COLUMNS]
    for index, row in enumerate(reader):
        place = f"{path}:{reader.line_num}"
        costly = [name for name in others if (row[name] or "0").strip() not in {"0", "0.0"}]
        if costly:
            raise WorkloadError(
                f"{place}: {costly[0]} is {row[costly[0]]!r}, which the simulator does not price; take the column out "
                "to leave it unpriced"
            )
        try:
            arrival_ns = _timestamp_ns(row["TIMESTAMP"] or "")
        except (ValueError, TypeError) as error:
            rule = "TIMESTAMP must be YYYY-MM-DD HH:MM:SS.fffffff"
            raise WorkloadError(f"{place}: {rule}, got {row['TIMESTAMP']!r}; correct the row") from error
        prompt = _whole_number(place, "ContextTokens", row["ContextTokens"])
        yield Request(index, arrival_ns, prompt, _whole_number(place, "GeneratedTokens", row["GeneratedTokens"]))


def _timestamp_ns(text: str) -> int:
    """Return nanoseconds since 1970 of a UTC time; the traces have seven decimals, one more than `datetime` keeps."""
    whole, _, fraction = text.strip().removesuffix("Z").removesuffix("+00:00").partition(".")
    if not f"{fraction}0".isdecimal():
        raise ValueError(text)
    seconds = (datetime.fromisoformat(whole) - _EPOCH) // timedelta(seconds=1)
    return seconds * NS_PER_S + int(fraction.ljust(9, "0")[:9])


def _read_dooly(path: Path, handle: TextIO) -> Iterator[Request]:
    reader = csv.DictReader(handle, skipinitialspace=True)
    for row in reader:
        place = f"{path}:{reader.line_num}"
        yield Request(
            _whole_number(place, "request_id", row["request_id"], minimum=0),
            _seconds_ns(place, "arrival_s", row["arrival_s"]),
            _whole_number(place, "num_prompt_tokens", row["num_prompt_tokens"]),
            _whole_number(place, "num_output_tokens", row["num_output_tokens"]),
            priority=0 if row.get("priority") is None else _whole_number(place, "priority", row["priority"], minimum=_ANY),
        )


def _read_objects(
    keys: tuple[str, ...], read: Callable[[int, str, dict[str, Any]], Request], path: Path, handle: TextIO
) -> Iterator[Request]:
    """Yield the request of each line's JSON object."""
    index = 0
    for line_number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        place = f"{path}:{line_number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkloadError(f"{place}: a line must be one JSON object ({error}); correct the line") from error
        if not isinstance(row, dict) or not set(keys) <= row.keys():
            raise WorkloadError(f"{place}: a line must be a JSON object with {', '.join(keys)}, got {line.strip()[:80]!r}")
        yield read(index, place, row)
        index += 1


def _jsonl_request(index: int, place: str, row: dict[str, Any]) -> Request:
    prompt, output = (_whole_number(place, key, row[key]) for key in ("input_toks", "output_toks"))
    return Request(index, _whole_number(place, "arrival_time_ns", row["arrival_time_ns"], minimum=0), prompt, output)


def _mooncake_request(index: int, place: str, row: dict[str, Any]) -> Request:
    """Return the request of a line: milliseconds, and an id for each 512 tokens of the prompt, which prompts may share."""
    prompt, output = (_whole_number(place, key, row[key]) for key in ("input_length", "output_length"))
    ids = row["hash_ids"]
    if not isinstance(ids, list) or len(ids) > -(-prompt // MOONCAKE_BLOCK_SIZE):
        raise WorkloadError(
            f"{place}: hash_ids must be a list of at most one id for each {MOONCAKE_BLOCK_SIZE} of {prompt} tokens, got "
            f"{spell(ids)[:80]}; correct the line"
        )
    hash_ids = tuple(_whole_number(place, "hash_ids", value, minimum=0) for value in ids)
    arrival_ns = _seconds_ns(place, "timestamp", str(row["timestamp"])) // 1000
    return Request(index, arrival_ns, prompt, output, hash_ids, MOONCAKE_BLOCK_SIZE)


def _seconds_ns(place: str, name: str, value: str | None) -> int:
    """Return a field's seconds as nanoseconds; `place` and `name` go into the error."""
    try:
        seconds = float(value or "")
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise WorkloadError(f"{place}: {name} must be a number of seconds, at least 0, got {value!r}; correct the row")
    return round(seconds * NS_PER_S)


_FROM_FIRST = (_read_azure,)
"""Readers of files whose times count from another moment than the workload's start."""


def _whole_number(place: str, name: str, value: object, *, minimum: int = 1) -> int:
    """Return a field's integer; `place` and `name` go into the error."""
    try:
        number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or number < minimum:
        raise WorkloadError(f"{place}: {name} must be a whole number of at least {minimum}, got {value!r}; correct the row")
    return number
