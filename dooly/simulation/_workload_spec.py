"""`--workload SPEC|FILE`: `kind:key=value,...` of kind poisson, gamma, closed or azure, or the path of a workload file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from dooly.errors import WorkloadError
from dooly.simulation._workload import LengthRange, Workload, draw_arrivals_ns, generate_workload
from dooly.simulation._workload_files import read_workload

NumberT = TypeVar("NumberT", int, float)

_REQUIRED = {
    "poisson": ("rate", "prompt", "output"),
    "gamma": ("rate", "cv", "prompt", "output"),
    "closed": ("concurrency", "prompt", "output"),
    "azure": ("path",),
}
_DRAWN = {"requests": "100", "seed": "0", "prefix": "0", "prefixes": "1"}
"""What may be left out of workloads that are drawn, with what it then is."""
_OPTIONAL = {"azure": ("requests", "rate", "seed", "max_tokens")}


def parse_workload(text: str) -> Workload:
    """Make the workload that a command-line argument names.

    Args:
        text: One of

            - `poisson:rate=2,requests=100,prompt=512,output=64-256,seed=0`: Poisson arrivals at `rate` a second (`inf` sends all
              at once); lengths are a number or a range, drawn uniformly; `requests` and `seed` may be left out;
            - `gamma:...,cv=3`: the same with gaps of that coefficient of variation;
            - `closed:concurrency=32,requests=320,prompt=1024,output=128`: so many users, each of whom sends the next request when
              the last one has ended;
            - `azure:path=FILE,requests=200,rate=1.5,seed=0,max_tokens=2000`: lengths in order from an Azure 2023 trace, Poisson
              arrivals at `rate`, or the trace's own without it; rows longer than `max_tokens` in all are left out;
            - the path of a workload file (see `read_workload`).

    Raises:
        WorkloadError: The text or the file breaks a rule, which the message names.
    """
    kind, colon, body = text.partition(":")
    if not colon or kind not in _REQUIRED:
        path = Path(text)
        if not path.exists():
            raise WorkloadError(f"workload {text!r}: neither a file nor a specification; give a path or one of {_usage()}")
        return read_workload(path)
    options = _split(text, kind, body)
    if kind == "azure":
        return _azure(text, options)
    if "prefixes" in options and "prefix" not in options:
        raise WorkloadError(
            f"workload {text!r}: prefixes has no effect without prefix; give its tokens as well, or drop prefixes"
        )
    options = _DRAWN | options
    workload = generate_workload(
        _number(text, options, "requests", int),
        _number(text, {"rate": "inf", **options}, "rate", float),
        _length_range(text, options, "prompt"),
        _length_range(text, options, "output"),
        seed=_number(text, options, "seed", int),
        cv=_number(text, {"cv": "1", **options}, "cv", float),
        prefix=_number(text, options, "prefix", int),
        num_prefixes=_number(text, options, "prefixes", int),
    )
    return (
        replace(workload, description=text, concurrency=_number(text, options, "concurrency", int))
        if kind == "closed"
        else workload
    )


def _usage() -> str:
    return ", ".join(f"{kind}:{','.join(f'{key}=' for key in keys)}" for kind, keys in _REQUIRED.items())


def _split(text: str, kind: str, body: str) -> dict[str, str]:
    """Return the options of a specification, checked for unknown, repeated and missing keys."""
    known = _REQUIRED[kind] + _OPTIONAL.get(kind, tuple(_DRAWN))
    options: dict[str, str] = {}
    for item in body.split(","):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise WorkloadError(f"workload {text!r}: unknown key {key!r}; {kind} knows {', '.join(known)}")
        if key in options or not value:
            raise WorkloadError(f"workload {text!r}: {key!r} must be given one value, once; write {key}=VALUE")
        options[key] = value
    for key in _REQUIRED[kind]:
        if key not in options:
            raise WorkloadError(f"workload {text!r}: {key!r} is missing; {kind} needs {', '.join(_REQUIRED[kind])}")
    return options


def _number(text: str, options: dict[str, str], key: str, convert: type[NumberT]) -> NumberT:
    try:
        return convert(options[key])
    except ValueError as error:
        raise WorkloadError(f"workload {text!r}: {key} must be a number ({convert.__name__}), got {options[key]!r}") from error


def _length_range(text: str, options: dict[str, str], key: str) -> LengthRange:
    low, dash, high = options[key].partition("-")
    try:
        return LengthRange(int(low), int(high if dash else low))
    except ValueError as error:
        raise WorkloadError(
            f"workload {text!r}: {key} must be LENGTH or LOW-HIGH with 1 <= LOW <= HIGH, got {options[key]!r}"
        ) from error


def _azure(text: str, options: dict[str, str]) -> Workload:
    """Return a trace's requests, with Poisson arrivals where a rate is given."""
    limit = _number(text, options, "requests", int) if "requests" in options else None
    max_tokens = _number(text, options, "max_tokens", int) if "max_tokens" in options else None
    trace = read_workload(Path(options["path"]), limit=limit, max_tokens=max_tokens)
    if limit is not None and len(trace.requests) < limit:
        raise WorkloadError(
            f"workload {text!r}: the trace holds only {len(trace.requests)} such requests; lower requests={limit}"
        )
    if "rate" not in options:
        if "seed" in options:
            raise WorkloadError(
                f"workload {text!r}: seed has no effect on the trace's own arrivals; give rate as well, or drop seed"
            )
        return Workload(trace.requests, text)
    rng = np.random.default_rng(_number(text, {"seed": "0", **options}, "seed", int))
    arrivals_ns = draw_arrivals_ns(len(trace.requests), _number(text, options, "rate", float), 1.0, rng)
    in_file_order = sorted(trace.requests, key=lambda request: request.request_id)
    return Workload(tuple(replace(r, arrival_ns=ns) for r, ns in zip(in_file_order, arrivals_ns, strict=True)), text)
