"""What the service takes and gives, as JSON. `/predict` and `/predict/bulk` are those of llm-d's latency predictor."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic reads the annotations
from typing import Annotated, Any

from fastapi import HTTPException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt

from dooly.adapters.service._server_state import ServerState

_TOO_LARGE = 413
_MOST = 1_000_000_000
"""Larger counts of tokens or requests are mistakes, and would overflow sums."""
_MOST_TOKENS = 10_000_000
"""Of one request in a batch."""
_MAX_BULK = 10_000
_MAX_BATCHES = 1024
_MAX_REQS = 8192
_MAX_PLACES = 1 << 17
"""Requests of all batches together: reading and writing more would keep other requests waiting."""


def _whole(value: Any) -> Any:  # noqa: ANN401 - whatever JSON has there
    """Take 144.0 as 144: a whole number in JSON, and in JSON Schema, however it is written."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _all_whole(values: Any) -> Any:  # noqa: ANN401 - whatever JSON has there
    """Take each as `_whole`; a list without fractions, as nearly all are, is looked at only once."""
    return [_whole(value) for value in values] if isinstance(values, list) and float in {*map(type, values)} else values


def _not_too_many(batches: Any) -> Any:  # noqa: ANN401 - whatever JSON has there
    """Refuse more requests than are read beside others, before any of them is looked at."""
    listed = [batch for batch in batches if isinstance(batch, dict)] if isinstance(batches, list) else []
    counts = ([batch.get(name) for name in ("num_new_tokens", "num_computed_tokens")] for batch in listed)
    if (num_reqs := sum(max(len(each) if isinstance(each, list) else 0 for each in pair) for pair in counts)) > _MAX_PLACES:
        detail = f"body.batches: {num_reqs} requests in all; send up to {_MAX_PLACES} at once"
        raise HTTPException(_TOO_LARGE, detail)
    return batches


_Count = Annotated[int, Field(ge=0, le=_MOST), BeforeValidator(_whole)]


class PredictionRequest(BaseModel):
    """What a gateway knows of a server and of a request; llm-d's further fields are taken and not read."""

    model_config = ConfigDict(strict=True)

    kv_cache_percentage: float = Field(ge=0, le=1, description="Share of the KV cache in use, from 0 to 1.")
    input_token_length: _Count = Field(description="Tokens of the prompt.")
    num_request_waiting: _Count = Field(description="Requests whose prompts wait at the server.")
    num_request_running: _Count = Field(description="Requests that it decodes.")
    num_tokens_generated: _Count = Field(description="Tokens that the request has put out already.")
    prefix_cache_score: float = Field(ge=0, le=1, description="Share of the prompt that lies in the cache, from 0 to 1.")
    prefill_tokens_in_flight: _Count = Field(
        default=0, description="Tokens of the prompts that wait; 0: as many as this one's for each."
    )

    def state(self) -> ServerState:
        """Return the same as what Dooly prices."""
        return ServerState(
            input_token_length=self.input_token_length,
            num_request_running=self.num_request_running,
            num_request_waiting=self.num_request_waiting,
            kv_cache_percentage=self.kv_cache_percentage,
            num_tokens_generated=self.num_tokens_generated,
            prefix_cache_score=self.prefix_cache_score,
            prefill_tokens_in_flight=self.prefill_tokens_in_flight,
        )


class PredictionResponse(BaseModel):
    """What the request would see there."""

    ttft_ms: float = Field(description="Time to first token, in milliseconds.")
    tpot_ms: float = Field(description="Time of each further token, in milliseconds.")
    ttft_is_least: bool = Field(
        description="Whether the server is full and nobody has said how long requests are: the first token then comes later."
    )
    predicted_at: datetime = Field(description="When this was predicted.")
    model_type: str = Field(default="dooly", description="Who predicts.")
    objective_type: str = Field(default="mean", description="Which statistic of the latency this is.")
    quantile: float = Field(default=0.5, description="Stands in llm-d's contract; a mean has none.")
    last_model_load: datetime = Field(description="When the latencies were loaded.")


class BulkPredictionRequest(BaseModel):
    """Many predictions at once."""

    requests: list[PredictionRequest] = Field(min_length=1, max_length=_MAX_BULK)


class BulkPredictionError(BaseModel):
    """A prediction that there is none of."""

    index: int = Field(description="Its place among the requests.")
    error: str = Field(description="Why, in one line.")
    request: PredictionRequest


class BulkPredictionResponse(BaseModel):
    """Predictions in the order of their requests, None where one failed."""

    predictions: list[PredictionResponse | None]
    errors: list[BulkPredictionError]
    total_requests: int
    successful_predictions: int
    failed_predictions: int
    processing_time_ms: float


_NewTokens = Annotated[StrictInt, Field(ge=1, le=_MOST_TOKENS)]
_ComputedTokens = Annotated[StrictInt, Field(ge=0, le=_MOST_TOKENS)]


class StepBatch(BaseModel):
    """A scheduled batch, as `dooly.Batch` has it."""

    model_config = ConfigDict(extra="forbid")

    num_new_tokens: Annotated[list[_NewTokens], BeforeValidator(_all_whole)] = Field(
        min_length=1, max_length=_MAX_REQS, description="Tokens to compute of each request."
    )
    num_computed_tokens: Annotated[list[_ComputedTokens], BeforeValidator(_all_whole)] = Field(
        min_length=1, max_length=_MAX_REQS, description="Tokens of each that lie in the cache."
    )
    num_new_requests: Annotated[StrictInt | None, BeforeValidator(_whole)] = Field(
        default=None, ge=0, le=_MAX_REQS, description="Requests new to the engine; by default without tokens."
    )


class StepRequest(BaseModel):
    """Batches to price."""

    model_config = ConfigDict(extra="forbid")

    batches: Annotated[list[StepBatch], BeforeValidator(_not_too_many)] = Field(
        min_length=1,
        max_length=_MAX_BATCHES,
        description=f"The batches, of {_MAX_PLACES} requests at most together: more are refused with 413.",
    )
    extrapolate: StrictBool = Field(default=False, description="Price batches beyond what was measured too, and flag them.")
    breakdown: StrictBool = Field(default=False, description="Give the seconds of each operation.")


class StepPrice(BaseModel):
    """The latency of one step, as `dooly.predict.StepLatency` has it."""

    seconds: float = Field(description="Latency of the step on a device that has not run for long without a pause.")
    sustained_s: float | None = Field(
        default=None,
        description="Latency of it, in seconds, on one that its power limit has slowed; null where that is unknown.",
    )
    products_s: float | None = Field(
        default=None,
        description="How much of `seconds` draws on the burst of the power limit, of which `/status` tells; null where that is "
        "unknown.",
    )
    uncertainty_s: float = Field(description="Typical error of it, in seconds.")
    extrapolated: bool = Field(description="Whether the batch lies outside what was measured.")
    provenance: dict[str, float] = Field(description="Share of the seconds that is measured, of its family, or estimated.")
    breakdown_s: dict[str, float] | None = Field(default=None, description="Seconds of each operation, by module path.")


class StepResponse(BaseModel):
    """Latencies in the order of the batches."""

    steps: list[StepPrice]


class PowerLimit(BaseModel):
    """What a device's power limit does to products that run on without a pause, as `dooly.power_cap.PowerCap` has it."""

    burst_s: float = Field(
        description="Seconds of such products that run at full clocks; what is no such product, and pauses, give them back."
    )
    slowdown: float = Field(description="How much longer they take from then on, as a fraction.")


class Status(BaseModel):
    """What is served."""

    is_ready: bool
    model: str
    device: str
    engine: str
    last_model_load: datetime
    power_limit: PowerLimit | None = Field(description="Its rule for steps behind each other; null where nobody knows it.")
    store_refused: str | None = Field(description="Why the store as it is now is not served; null where it is.")


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="One line: place, rule, value.")
