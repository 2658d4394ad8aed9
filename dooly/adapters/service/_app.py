"""The service's endpoints, over one latency model."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from dooly.adapters._pieces import in_pieces
from dooly.adapters.service._bulk import SHORT, Bulk, prediction
from dooly.adapters.service._guard import Guard, Metrics, ServiceLimits
from dooly.adapters.service._schemas import (
    BulkPredictionRequest,
    BulkPredictionResponse,
    PowerLimit,
    PredictionRequest,
    PredictionResponse,
    Problem,
    Status,
    StepPrice,
    StepRequest,
    StepResponse,
)
from dooly.adapters.service._threads import DaemonThreads
from dooly.batch import Batch
from dooly.errors import DoolyError, InvalidInputError, OutOfDomainError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from dooly.adapters.service._served_model import ModelSlot, ServedModel

Answer = TypeVar("Answer")
_NO_JSON, _CONFLICT, _NO_TYPE, _INVALID, _FAILED = 400, 409, 415, 422, 500
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        (400, "The body is no JSON."),
        (408, "The body came too slowly."),
        (409, "The body is as the schema says, but its numbers conflict with one another or with what is served."),
        (413, "The body is too large."),
        (415, "The body is not said to be JSON."),
        (422, "The body is not as the schema says."),
        (503, "It took too long."),
    )
}


def create_app(slot: ModelSlot, limits: ServiceLimits | None = None) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        slot: The model that it serves.
        limits: What one request may take.
    """
    limits = limits or ServiceLimits()
    metrics = Metrics()
    pricing, watching = DaemonThreads(limits.num_threads, "dooly-price"), DaemonThreads(1, "dooly-watch")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_watch(slot, limits.reload_s, watching)) if slot.watches and limits.reload_s else None
        yield
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for threads in (pricing, watching):
            threads.shutdown(wait=False, cancel_futures=True)

    # The pages of /docs would load scripts from other people's servers.
    app = FastAPI(title="Dooly", summary="Latencies of LLM serving", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_predictions(app, slot, metrics, pricing)
    _add_facts(app, slot, metrics)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DoolyError, _refused)
    paths = [path for route in app.routes if (path := getattr(route, "path", None)) is not None]
    app.add_middleware(Guard, limits=limits, metrics=metrics, paths=paths)
    return app


def _add_predictions(app: FastAPI, slot: ModelSlot, metrics: Metrics, threads: Executor) -> None:
    predicted = metrics.predictions.labels("/predict")

    @app.post("/predict", responses=_PROBLEMS)
    async def predict(request: PredictionRequest) -> PredictionResponse:
        """Predict the TTFT and TPOT of a request at a server, as llm-d's predictor."""
        served = slot.served
        (found,) = served.latencies([request.state()])
        predicted.inc()
        return prediction(found, served, datetime.now(UTC))

    @app.post("/predict/bulk", responses=_PROBLEMS)
    async def predict_bulk(request: BulkPredictionRequest) -> BulkPredictionResponse:
        """Predict many, each on its own: one that fails leaves the others."""
        bulk = Bulk(slot.served, request.requests)
        answer = await _run(threads, bulk.each, is_short=bulk.is_short)
        metrics.predictions.labels("/predict/bulk").inc(answer.successful_predictions)
        return answer

    @app.post("/predict/bulk/strict", responses=_PROBLEMS)
    async def predict_bulk_strict(request: BulkPredictionRequest) -> BulkPredictionResponse:
        """Predict many, all or none."""
        bulk = Bulk(slot.served, request.requests)
        answer = await _run(threads, bulk.all_or_none, is_short=bulk.is_short)
        metrics.predictions.labels("/predict/bulk/strict").inc(answer.successful_predictions)
        return answer

    @app.post("/step", responses=_PROBLEMS)
    async def step(request: StepRequest) -> StepResponse:
        """Price scheduled batches, each as `LatencyModel.step` does."""
        widest = max(len(batch.num_new_tokens) for batch in request.batches)
        is_short = len(request.batches) * math.ceil(widest / SHORT) <= SHORT
        prices = await _run(threads, _steps, slot.served, request, is_short=is_short)
        metrics.predictions.labels("/step").inc(len(prices))
        return StepResponse(steps=prices)


async def _run(threads: Executor, work: Callable[..., Answer], *asked: object, is_short: bool) -> Answer:
    """Do short work at once, and other beside the requests.

    A thread shares the interpreter with the requests that come meanwhile: what takes a few milliseconds delays them, and itself,
    longer there. When nobody waits any longer, work that has begun ends with the piece that it is at, and other is dropped.
    """
    if is_short:
        return work(*asked)
    given_up = Event()
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, partial(work, *asked, given_up))
    except asyncio.CancelledError:
        given_up.set()
        raise


def _add_facts(app: FastAPI, slot: ModelSlot, metrics: Metrics) -> None:
    @app.get("/status")
    async def status() -> Status:
        """Tell what is served."""
        served = slot.served
        environment, cap = served.latency.environment, served.latency.power_cap
        return Status(
            is_ready=True,
            model=served.latency.traced.model,
            device=environment.device,
            engine=f"{environment.engine} {environment.engine_version}",
            last_model_load=served.loaded_at,
            power_limit=None if cap is None else PowerLimit(burst_s=cap.burst_ns / 1e9, slowdown=cap.slowdown_permille / 1000),
            store_refused=slot.refusal,
        )

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the process lives."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Tell that it answers: a model is there from the start."""
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Give the metrics in Prometheus' text format."""
        metrics.loaded.set(slot.served.loaded_at.timestamp())
        metrics.refused.set(slot.refusal is not None)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _watch(slot: ModelSlot, every_s: float, threads: Executor) -> None:
    """Look at the store now and then, beside the requests."""
    while True:
        await asyncio.sleep(every_s)
        await asyncio.get_running_loop().run_in_executor(threads, slot.refresh)


def _steps(served: ServedModel, request: StepRequest, given_up: Event | None = None) -> list[StepPrice]:
    """Price the batches of a request, unless nobody waits for them any longer."""
    batches = [
        Batch(tuple(batch.num_new_tokens), tuple(batch.num_computed_tokens), batch.num_new_requests)  # type: ignore[arg-type]  # None is its default
        for batch in request.batches
    ]
    pieces = in_pieces(batches, lambda batch: (1, batch.num_reqs), given_up=given_up)
    return [price for piece in pieces for price in _priced(served, piece, request)]


def _priced(served: ServedModel, batches: Sequence[Batch], request: StepRequest) -> Iterator[StepPrice]:
    """Price some of the batches at once."""
    found = served.latency.steps(batches, extrapolate=request.extrapolate)
    cap = served.latency.power_cap
    for batch, step in zip(batches, map(found.__getitem__, range(len(found))), strict=True):
        yield StepPrice(
            seconds=step.seconds,
            sustained_s=step.sustained_s,
            products_s=None if cap is None else min(step.seconds, cap.products_of(batch.num_tokens) / 1e9),
            uncertainty_s=step.uncertainty_s,
            extrapolated=step.extrapolated,
            provenance={str(source): share for source, share in step.provenance.items()},
            breakdown_s=dict(step.breakdown_s) if request.breakdown else None,
        )


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Say in one line what a body breaks first, and how many rules beside."""
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return JSONResponse({"detail": f"body: no JSON: {first['ctx']['error']}; see /openapi.json"}, _NO_JSON)
    if isinstance(first["input"], bytes):  # read as JSON only where the header says so
        given = request.headers.get("content-type", "none")
        return JSONResponse({"detail": f"content-type: {given}; send application/json"}, _NO_TYPE)
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" * bool(others)
    return JSONResponse({"detail": f"{place}: {_lowered(first['msg'])}{more}; see /openapi.json"}, _INVALID)


def _lowered(message: str) -> str:
    """Return a message as the end of a sentence: its first letter is small, unless that of an abbreviation."""
    return message if message[1:2].isupper() else message[:1].lower() + message[1:]


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    """Say in one line what Dooly refuses: 409 where it is for what was asked."""
    status = _CONFLICT if isinstance(error, InvalidInputError | OutOfDomainError) else _FAILED
    return JSONResponse({"detail": str(error)}, status)
