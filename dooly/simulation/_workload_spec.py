"""`--workload SPEC|FILE`: `kind:key=value,...` of one of the kinds below, or the path of a workload file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dooly.errors import WorkloadError
from dooly.simulation._arrivals import Stage, draw_arrivals_ns, draw_staged_arrivals_ns
from dooly.simulation._columns import as_columns
from dooly.simulation._generate import add_turns, generate_workload
from dooly.simulation._lengths import LengthRange, NormalLengths
from dooly.simulation._sharegpt import is_usual, read_sharegpt
from dooly.simulation._workload import NS_PER_S, PLAIN, Request, Turn, Workload
from dooly.simulation._workload_files import read_workload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.simulation._lengths import Lengths
    from dooly.simulation._sharegpt import Exchange

NumberT = TypeVar("NumberT", int, float)

_REQUIRED = {
    "poisson": ("rate", "prompt", "output"),
    "gamma": ("rate", "cv", "prompt", "output"),
    "constant": ("rate", "prompt", "output"),
    "closed": ("concurrency", "prompt", "output"),
    "trace": ("path",),
    "sharegpt": ("path", "tokenizer", "rate"),
}
_OTHER_NAMES = {"azure": "trace"}
_CV = {"poisson": "1", "constant": "0"}
"""How uneven arrivals are, where the kind says so."""
_DRAWN = {"requests": "100", "seed": "0", "prefix": "0", "prefixes": "1"}
"""What may be left out of workloads that are drawn, with what it then is."""
_TURNS = {"turns": "1", "think": "0"}
"""The same of open ones, for conversations."""
_OPTIONAL = {
    "poisson": (*_DRAWN, *_TURNS),
    "gamma": (*_DRAWN, *_TURNS),
    "constant": (*_DRAWN, *_TURNS),
    "closed": tuple(_DRAWN),
    "trace": ("requests", "rate", "seed", "max_tokens", "speed", "start", "end"),
    "sharegpt": ("requests", "seed", "think"),
}


def parse_workload(text: str) -> Workload:
    """Make the workload that a command-line argument names.

    Args:
        text: One of

            - `poisson:rate=2,requests=100,prompt=512,output=64-256,seed=0`: Poisson arrivals at `rate` a second (`inf` sends all
              at once). Lengths are a number, a range drawn uniformly, or `MEAN~STDEV` of a normal distribution; `requests` and
              `seed` may be left out. With `prefix=256`, prompts begin with as many tokens that they share, with `prefixes=4`
              with one of four such beginnings;
            - `gamma:...,cv=3`: the same with gaps of that coefficient of variation; `constant:...`: at equal ones;
            - any of these three at `rate=2x60+8x30`: 2 a second for 60 s, then 8 for 30 s, `requests` being what comes of it;
            - any of these three with `turns=2-5,think=3`: each request opens a conversation of so many turns; each turn begins
              with all that was said before and is sent 3 s after the last one has ended;
            - `closed:concurrency=32,requests=320,prompt=1024,output=128`: so many users, each of whom sends the next request when
              the last one has ended;
            - `trace:path=FILE,requests=200,max_tokens=2000,start=60,end=120,speed=2`: the requests of a workload file from second
              60 to 120, the first 200, without those longer than `max_tokens` in all, at twice their rate; with `rate=1.5` and
              `seed=0` at Poisson arrivals in their place, by `request_id`. `azure:` is another name of it;
            - `sharegpt:path=FILE,tokenizer=FOLDER,rate=2,requests=200,seed=0`: the first exchange of each conversation, Poisson
              arrivals, of those lengths that `vllm bench serve` takes; with `think=3` whole conversations, as above;
            - the path of a workload file (see `read_workload`).

    Raises:
        WorkloadError: The text or the file breaks a rule, which the message names.

    Examples:
        >>> len(dooly.parse_workload("poisson:rate=2,requests=40,prompt=64-256,output=16-64").requests)
        40
    """
    kind, colon, body = text.partition(":")
    kind = _OTHER_NAMES.get(kind, kind)
    if not colon or kind not in _REQUIRED:
        path = Path(text)
        if not path.exists():
            raise WorkloadError(f"workload {text!r}: neither a file nor a specification; give a path or one of {_usage()}")
        return read_workload(path)
    try:
        return _specified(text, kind, _split(text, kind, body))
    except WorkloadError as error:
        if str(error).startswith("workload "):
            raise
        raise WorkloadError(f"workload {text!r}: {error}") from error


def _specified(text: str, kind: str, options: dict[str, str]) -> Workload:
    """Return the workload of a specification of a kind."""
    if kind == "trace":
        return _trace(text, options)
    if kind == "sharegpt":
        return _sharegpt(text, options)
    for key, needed in (("prefixes", "prefix"), ("think", "turns")):
        if key in options and needed not in options:
            raise WorkloadError(f"workload {text!r}: {key} has no effect without {needed}; give it as well, or drop {key}")
    options = {"cv": _CV.get(kind, "1"), **options}
    return _drawn(text, options)


def _drawn(text: str, options: dict[str, str]) -> Workload:
    """Return a workload whose lengths and arrivals are drawn."""
    stages = _stages(text, options.get("rate", "inf"))
    given, options = set(options), _DRAWN | _TURNS | options
    prompt, output = _lengths(text, options, "prompt"), _lengths(text, options, "output")
    seed, cv = _seed(text, options), _number(text, options, "cv", float)
    arrivals_ns = np.empty(0, np.int64)
    if stages:
        if "requests" in given:
            raise WorkloadError(f"workload {text!r}: stages of a rate say how many requests there are; drop requests")
        arrivals_ns = draw_staged_arrivals_ns(stages, cv, np.random.default_rng((seed, 3)))
    workload = generate_workload(
        len(arrivals_ns) or _number(text, options, "requests", int),
        float("inf") if stages else _number(text, {"rate": "inf", **options}, "rate", float),
        prompt,
        output,
        seed=seed,
        cv=cv,
        prefix=_number(text, options, "prefix", int),
        num_prefixes=_number(text, options, "prefixes", int),
    )
    if stages:
        requests = as_columns(Request, workload.requests, PLAIN)
        workload = Workload(requests.replaced(arrival_ns=arrivals_ns), text)
    if "concurrency" in given:
        return replace(workload, description=text, concurrency=_number(text, options, "concurrency", int))
    if "turns" in given:
        turns = _range(text, options, "turns")
        return replace(add_turns(workload, turns, _seconds(text, options, "think"), prompt, output, seed), description=text)
    return workload


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


def _seed(text: str, options: Mapping[str, str]) -> int:
    """Return the seed; 0 where none is given."""
    seed = _number(text, {"seed": "0", **options}, "seed", int)
    if seed < 0:
        raise WorkloadError(f"workload {text!r}: seed must be at least 0, got {seed}")
    return seed


def _seconds(text: str, options: dict[str, str], key: str) -> float:
    seconds = _number(text, options, key, float)
    if not 0 <= seconds < float("inf"):
        raise WorkloadError(f"workload {text!r}: {key} must be a number of seconds, at least 0, got {options[key]!r}")
    return seconds


def _stages(text: str, rate: str) -> tuple[Stage, ...]:
    """Return the stages of a rate such as `2x60+8x30`; none of a single one."""
    if "x" not in rate:
        return ()
    try:
        parts = [part.split("x") for part in rate.split("+")]
        return tuple(Stage(float(per_s), float(duration_s)) for per_s, duration_s in parts)
    except ValueError as error:
        raise WorkloadError(f"workload {text!r}: rate must be RATE or RATExSECONDS+RATExSECONDS+..., got {rate!r}") from error


def _range(text: str, options: Mapping[str, str], key: str) -> LengthRange:
    low, dash, high = options[key].partition("-")
    try:
        return LengthRange(int(low), int(high if dash else low))
    except ValueError as error:
        raise WorkloadError(
            f"workload {text!r}: {key} must be NUMBER or LOW-HIGH with 1 <= LOW <= HIGH, got {options[key]!r}"
        ) from error


def _lengths(text: str, options: Mapping[str, str], key: str) -> Lengths:
    mean, tilde, stdev = options[key].partition("~")
    try:
        return NormalLengths(float(mean), float(stdev)) if tilde else _range(text, options, key)
    except ValueError as error:
        raise WorkloadError(
            f"workload {text!r}: {key} must be LENGTH, LOW-HIGH with 1 <= LOW <= HIGH, or MEAN~STDEV, got {options[key]!r}"
        ) from error


def _trace(text: str, options: dict[str, str]) -> Workload:
    """Return what is kept of a file's requests, with Poisson arrivals where a rate is given."""
    limit = _number(text, options, "requests", int) if "requests" in options else None
    ends = {"start": "0", "end": "inf", "speed": "1", **options}
    trace = read_workload(
        Path(options["path"]),
        limit=limit,
        max_tokens=_number(text, options, "max_tokens", int) if "max_tokens" in options else None,
        rate_scale=_number(text, ends, "speed", float),
        start_s=_number(text, ends, "start", float),
        end_s=_number(text, ends, "end", float),
    )
    if limit is not None and len(trace.requests) < limit:
        raise WorkloadError(
            f"workload {text!r}: the trace holds only {len(trace.requests)} such requests; lower requests={limit}"
        )
    if "rate" not in options:
        if "seed" in options:
            raise WorkloadError(
                f"workload {text!r}: seed has no effect on the trace's own arrivals; give rate as well, or drop seed"
            )
        return replace(trace, description=text)
    if "speed" in options:
        raise WorkloadError(f"workload {text!r}: speed has no effect on arrivals at a rate; drop one of the two")
    rng = np.random.default_rng(_seed(text, options))
    arrivals_ns = draw_arrivals_ns(len(trace.requests), _number(text, options, "rate", float), 1.0, rng)
    requests = as_columns(Request, trace.requests, PLAIN)
    # Not by the trace's arrivals, which this load has not. Most formats are numbered as they stand in the file.
    by_id = requests.take(np.argsort(requests.column("request_id"), kind="stable"))
    return replace(trace, requests=by_id.replaced(arrival_ns=arrivals_ns), description=text)


def _sharegpt(text: str, options: dict[str, str]) -> Workload:
    """Return first exchanges, or with a pause given whole conversations, that arrive at random."""
    limit = _number(text, options, "requests", int) if "requests" in options else None
    if limit is not None and limit < 1:
        raise WorkloadError(f"workload {text!r}: requests must be at least 1, got {limit}")
    path, whole = Path(options["path"]), "think" in options
    kept: list[list[Exchange]] = []
    left_out = 0
    for exchanges in read_sharegpt(path, Path(options["tokenizer"]), None if whole else 1):
        if whole or is_usual(exchanges[0]):
            kept.append(exchanges)
        else:
            left_out += 1
        if len(kept) == limit:
            break
    if not kept:
        raise WorkloadError(f"workload {text!r}: the file holds no such conversation; give another")
    if limit is not None and len(kept) < limit:
        raise WorkloadError(f"workload {text!r}: the file holds only {len(kept)} such conversations; lower requests={limit}")
    rng = np.random.default_rng(_seed(text, options))
    arrivals_ns = draw_arrivals_ns(len(kept), _number(text, options, "rate", float), 1.0, rng)
    think_ns = round(_seconds(text, {"think": "0", **options}, "think") * NS_PER_S)
    requests: list[Request] = []
    for conversation, (arrival_ns, exchanges) in enumerate(zip(arrivals_ns.tolist(), kept, strict=True)):
        history, before = 0, None
        for prompt, output in exchanges:
            turn = Turn(conversation, before, think_ns if before is not None else 0) if whole else None
            requests.append(Request(len(requests), arrival_ns, history + prompt, output, turn=turn))
            history, before = history + prompt + output, requests[-1].request_id
    note = f"{path}: {left_out} conversations left out whose first exchange is shorter or longer than `vllm bench serve` takes"
    return Workload(tuple(requests), text, notes=(note,) if left_out else ())
