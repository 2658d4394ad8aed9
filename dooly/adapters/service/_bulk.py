"""Many predictions asked at once: each on its own, or all or none."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from dooly.adapters.service._schemas import BulkPredictionError, BulkPredictionResponse, PredictionResponse
from dooly.adapters.service._server_state import Plan, each_latency, plan_latencies, plan_of
from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Event

    from dooly.adapters.service._schemas import PredictionRequest
    from dooly.adapters.service._served_model import ServedModel
    from dooly.adapters.service._server_state import ServerLatency
    from dooly.errors import DoolyError

SHORT = 64
"""Predictions, or batches of so many requests, that take a few milliseconds together."""
_PLACES = 1 << 18
"""Places that are priced in a millisecond or two."""
_PLACES_OF_A_STEP = 1024
"""As many take as long as what a step costs however few requests it has: some 5 microseconds."""


class Bulk:
    """The predictions of one request of the service."""

    def __init__(self, served: ServedModel, requests: Sequence[PredictionRequest]) -> None:
        """Take what predicts, and what is asked."""
        self._started_s, self._now = time.perf_counter(), datetime.now(UTC)
        self._served, self._requests = served, requests

    @property
    def is_short(self) -> bool:
        """Whether all take a few milliseconds together: by their number, by the steps that tell them, and how wide these are."""
        if len(self._requests) > SHORT:
            return False
        shapes = [plan.shape() for plan in self._plans if isinstance(plan, Plan)]
        widest = max((width for _, width in shapes), default=0)
        return sum(rows for rows, _ in shapes) * (_PLACES_OF_A_STEP + widest) <= _PLACES

    @cached_property
    def _plans(self) -> list[Plan | InvalidInputError]:
        return [self._plan(request) for request in self._requests]

    def _plan(self, request: PredictionRequest) -> Plan | InvalidInputError:
        try:
            return plan_of(self._served.config, request.state(), self._served.traffic)
        except InvalidInputError as error:
            return error

    def each(self, given_up: Event | None = None) -> BulkPredictionResponse:
        """Predict each on its own: those that cannot be leave the others."""
        told = iter(each_latency(self._served.latency, [plan for plan in self._plans if isinstance(plan, Plan)], given_up))
        return self._response([next(told) if isinstance(plan, Plan) else plan for plan in self._plans])

    def all_or_none(self, given_up: Event | None = None) -> BulkPredictionResponse:
        """Predict all, or none.

        Raises:
            InvalidInputError: A request is longer than the servers take.
            OutOfDomainError: A step exceeds what was measured.
        """
        plans = []
        for plan in self._plans:
            if isinstance(plan, InvalidInputError):
                raise plan
            plans.append(plan)
        return self._response(plan_latencies(self._served.latency, plans, given_up))

    def _response(self, found: Sequence[ServerLatency | DoolyError]) -> BulkPredictionResponse:
        """Return the answer: predictions, and an error for what there is none of."""
        errors = [
            BulkPredictionError(index=index, error=str(one), request=self._requests[index])
            for index, one in enumerate(found)
            if isinstance(one, Exception)
        ]
        return BulkPredictionResponse(
            predictions=[None if isinstance(one, Exception) else prediction(one, self._served, self._now) for one in found],
            errors=errors,
            total_requests=len(found),
            successful_predictions=len(found) - len(errors),
            failed_predictions=len(errors),
            processing_time_ms=1e3 * (time.perf_counter() - self._started_s),
        )


def prediction(found: ServerLatency, served: ServedModel, now: datetime) -> PredictionResponse:
    """Return a prediction as the service answers it."""
    return PredictionResponse(
        ttft_ms=1e3 * found.ttft_s,
        tpot_ms=1e3 * found.tpot_s,
        ttft_is_least=found.is_least,
        predicted_at=now,
        last_model_load=served.loaded_at,
    )
