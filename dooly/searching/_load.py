"""A workload whose request rate is free: the same requests in the same pattern of arrivals, closer together or further apart."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from dooly.errors import WorkloadError
from dooly.simulation import Request, Workload, parse_workload
from dooly.simulation._columns import as_columns
from dooly.simulation._workload import NS_PER_S

_DRAWN = ("poisson", "gamma", "constant", "sharegpt")
"""Kinds of specifications whose arrivals are drawn at a rate."""
_TRACES = ("trace", "azure")
"""Those that have arrivals of their own where no rate is given."""
_FIELDS = tuple(field.name for field in fields(Request))


@dataclass(frozen=True, slots=True)
class Load:
    """Requests to be sent at any rate."""

    workload: Workload
    """The requests as they arrive at `rate`."""
    rate: float
    """Requests a second that arrive in the mean."""
    stated: float | None = None
    """The rate that a specification states; None where it states none."""

    def at(self, rate: float) -> Workload:
        """Return the requests at so many a second; infinite sends all at once."""
        requests = as_columns(Request, self.workload.requests, _FIELDS)
        arrival_ns = np.rint(requests.column("arrival_ns") * self.rate / rate).astype(np.int64)
        return replace(self.workload, requests=requests.replaced(arrival_ns=arrival_ns))


def read_load(text: str) -> Load:
    """Return the load that `--workload` names: what `parse_workload` takes, where `rate` may be left out.

    Raises:
        WorkloadError: The specification or the file breaks a rule; or one rate does not say when its requests are sent, as with
            users in a closed loop, turns of conversations, stages of a rate, and requests that all arrive at once.
    """
    kind, _, body = text.partition(":")
    if kind == "closed":
        raise WorkloadError(f"workload {text!r}: users in a closed loop have no request rate; give poisson, gamma or a file")
    load = _read_load(text, kind, body)
    if load.workload.waits_for_answers:
        raise WorkloadError(
            f"workload {text!r}: turns are sent when the ones before have ended, which no request rate says; drop turns and think"
        )
    return load


def _read_load(text: str, kind: str, body: str) -> Load:
    """Return the load of an open workload."""
    if kind in _DRAWN + _TRACES:
        items = [item for item in body.split(",") if item.partition("=")[0].strip() != "rate"]
        rates = [item.partition("=")[2] for item in body.split(",") if item not in items]
        if any("x" in rate for rate in rates):
            raise WorkloadError(
                f"workload {text!r}: a search scales all requests to one rate, in place of stages; drop rate, or give a file "
                "whose arrivals have the stages"
            )
        if len(rates) > 1:
            parse_workload(text)  # refuses two values of one name
        if kind in _DRAWN or rates:
            workload = parse_workload(f"{kind}:{','.join(['rate=1', *items])}")
            return Load(workload, 1.0, _stated(text, rates[0]) if rates else None)
    workload = parse_workload(text)
    span_ns = workload.requests[-1].arrival_ns - workload.requests[0].arrival_ns
    if not span_ns:
        raise WorkloadError(f"workload {text!r}: its requests all arrive at once and have no rate; give poisson or gamma")
    return Load(workload, NS_PER_S * (len(workload.requests) - 1) / span_ns)


def _stated(text: str, rate: str) -> float:
    try:
        return float(rate)
    except ValueError as error:
        raise WorkloadError(f"workload {text!r}: rate must be a number of requests a second, got {rate!r}") from error
