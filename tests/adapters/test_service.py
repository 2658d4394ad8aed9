"""The HTTP service: its answers and its limits."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dooly.adapters.service import ModelSlot, ServerState, ServiceLimits, create_app, server_latencies
from dooly.adapters.service._bulk import Bulk
from dooly.batch import Batch
from dooly.errors import InvalidInputError
from dooly.power_cap import PacedDevice
from dooly.predict import LatencyModel, default_serving
from dooly.speculation import SpeculativeConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import BatchArrays

ROOT = Path(__file__).parents[2]
STATE = {
    "kv_cache_percentage": 0.001,
    "input_token_length": 100,
    "num_request_waiting": 2,
    "num_request_running": 3,
    "num_tokens_generated": 4,
    "prefix_cache_score": 0.25,
}


@pytest.fixture(scope="module")
def client(slot: ModelSlot) -> Iterator[TestClient]:
    """A client of the service."""
    with TestClient(create_app(slot, ServiceLimits(body_bytes=100_000)), raise_server_exceptions=False) as found:
        yield found


def test_predict_answers_as_llm_d_s_predictor(client: TestClient, slot: ModelSlot) -> None:
    """The fields of its contract, in milliseconds, one number for what the steps take; its further fields are taken."""
    more = {"pod_type": "", "decode_tokens_in_flight": 5, "encoder_input_size": 0}
    answer = client.post("/predict", json=STATE | more)
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {
        *("ttft_ms", "tpot_ms", "ttft_is_least", "predicted_at", "model_type", "objective_type", "quantile", "last_model_load"),
    }
    (own,) = server_latencies(slot.served.latency, slot.served.config, [ServerState(**STATE)])
    assert body["ttft_ms"] == pytest.approx(1e3 * own.ttft_s)
    assert body["tpot_ms"] == pytest.approx(1e3 * own.tpot_s)


def test_bulk_keeps_the_order_and_tells_what_fails(client: TestClient) -> None:
    """One request that no server takes has its place and its reason; the strict way refuses all."""
    requests = [STATE, STATE | {"input_token_length": 100_000}, STATE | {"num_request_running": 0}]
    body = client.post("/predict/bulk", json={"requests": requests}).json()
    assert [prediction is None for prediction in body["predictions"]] == [False, True, False]
    assert (body["total_requests"], body["successful_predictions"], body["failed_predictions"]) == (3, 2, 1)
    (error,) = body["errors"]
    assert error["index"] == 1
    assert "exceeds the 512 of --max-model-len" in error["error"]
    assert error["request"]["input_token_length"] == 100_000
    assert body["predictions"][0]["ttft_ms"] == pytest.approx(client.post("/predict", json=STATE).json()["ttft_ms"])
    assert client.post("/predict/bulk/strict", json={"requests": requests}).status_code == 409
    assert client.post("/predict/bulk/strict", json={"requests": requests[::2]}).json()["successful_predictions"] == 2


def test_all_or_none_goes_by_what_was_measured_too(slot: ModelSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may take prompts in larger steps than were measured: one of them refuses all."""
    config = replace(slot.served.config, max_num_batched_tokens=512)
    monkeypatch.setattr(slot, "served", replace(slot.served, config=config))
    alone = STATE | {"num_request_waiting": 0}
    body = {"requests": [alone, alone | {"input_token_length": 400}]}
    with TestClient(create_app(slot)) as client:
        answer = client.post("/predict/bulk/strict", json=body)
        assert client.post("/predict/bulk", json=body).json()["failed_predictions"] == 1
    assert answer.status_code == 409
    assert "128" in answer.json()["detail"]


def test_those_that_are_beyond_what_was_measured_cost_little(slot: ModelSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the error that it has alone, and all others are priced at once."""
    config = replace(slot.served.config, max_num_batched_tokens=512)
    monkeypatch.setattr(slot, "served", replace(slot.served, config=config))
    states = [STATE | {"num_request_waiting": 0, "input_token_length": 100 + 10 * number} for number in range(32)]
    counted, prices = [], LatencyModel.steps_ns

    def count(latency: LatencyModel, batches: BatchArrays) -> Any:  # noqa: ANN401 - as it has it
        counted.append(len(batches))
        return prices(latency, batches)

    with TestClient(create_app(slot)) as client:
        alone = [client.post("/predict", json=state).json().get("detail") for state in states]
        monkeypatch.setattr(LatencyModel, "steps_ns", count)
        body = client.post("/predict/bulk", json={"requests": states}).json()
    assert 0 < body["failed_predictions"] < len(states)
    assert {error["index"]: error["error"] for error in body["errors"]} == {i: why for i, why in enumerate(alone) if why}
    assert len(counted) == 1


def test_step_prices_batches(client: TestClient, slot: ModelSlot) -> None:
    """Each is `LatencyModel.step`, with its parts where they are asked for."""
    batches = [
        {"num_new_tokens": [1, 1], "num_computed_tokens": [30, 400]},
        {"num_new_tokens": [100], "num_computed_tokens": [0], "num_new_requests": 1},
    ]
    first, second = client.post("/step", json={"batches": batches, "breakdown": True}).json()["steps"]
    own = slot.served.latency.step(Batch((1, 1), (30, 400)))
    assert first["seconds"] == pytest.approx(own.seconds)
    assert first["uncertainty_s"] == pytest.approx(own.uncertainty_s)
    assert first["breakdown_s"] == pytest.approx(dict(own.breakdown_s))
    assert sum(second["provenance"].values()) == pytest.approx(1)
    assert client.post("/step", json={"batches": batches}).json()["steps"][0]["breakdown_s"] is None
    assert (first["sustained_s"], second["sustained_s"]) == (None, None), "nobody measured this device's power limit"
    assert (first["products_s"], client.get("/status").json()["power_limit"]) == (None, None)
    beyond = {"batches": [{"num_new_tokens": [129], "num_computed_tokens": [0]}]}
    assert client.post("/step", json=beyond).status_code == 409
    assert client.post("/step", json=beyond | {"extrapolate": True}).json()["steps"][0]["extrapolated"] is True


def test_step_tells_both_bounds_of_a_known_power_limit(model: ModelSource) -> None:
    """A step has no history: it takes between what it does in a short burst and what it does once the limit has slowed it."""
    serving = default_serving(model, "h200", max_model_len=2048, max_num_batched_tokens=2048, max_num_seqs=8)
    slot = ModelSlot(model, serving, hardware="h200")
    body = {
        "batches": [{"num_new_tokens": [2047], "num_computed_tokens": [0]}, {"num_new_tokens": [1], "num_computed_tokens": [9]}]
    }
    with TestClient(create_app(slot)) as client:
        prompt, decode = client.post("/step", json=body).json()["steps"]
    assert prompt["sustained_s"] == pytest.approx(slot.served.latency.step(Batch((2047,), (0,))).sustained_s)
    assert 1.05 < prompt["sustained_s"] / prompt["seconds"] < 1.18
    assert decode["sustained_s"] == decode["seconds"]


def test_a_client_knows_the_rule_of_the_power_limit(model: ModelSource) -> None:
    """What is told over HTTP makes steps behind each other take what they take on a `PacedDevice`."""
    serving = default_serving(model, "h200", max_model_len=2048, max_num_batched_tokens=2048, max_num_seqs=8)
    slot = ModelSlot(model, serving, hardware="h200")
    batches = [{"num_new_tokens": [2047], "num_computed_tokens": [0]}, {"num_new_tokens": [1], "num_computed_tokens": [9]}]
    with TestClient(create_app(slot)) as client:
        limit = client.get("/status").json()["power_limit"]
        prompt, decode = client.post("/step", json={"batches": batches}).json()["steps"]
    assert decode["products_s"] == 0
    device, now_ns, spent_s, slowed = PacedDevice(slot.served.latency.power_cap), 0, 0.0, False
    for step, tokens, pause_s in [*[(prompt, 2047, 0.0)] * 8, (decode, 1, 0.0), *[(prompt, 2047, 0.004)] * 4]:
        now_ns += round(1e9 * pause_s)
        expected_ns = device.run_ns(now_ns, round(1e9 * step["seconds"]), tokens)
        now_ns += expected_ns
        spent_s = max(0.0, spent_s - pause_s - (step["seconds"] - step["products_s"])) + step["products_s"]
        took_s = step["seconds"] + limit["slowdown"] * max(0.0, spent_s - limit["burst_s"])
        spent_s = min(spent_s, limit["burst_s"])
        slowed |= took_s > step["seconds"]
        assert took_s == pytest.approx(expected_ns / 1e9, abs=1e-6)
    assert slowed


@pytest.mark.parametrize(
    ("path", "body", "status", "rule"),
    [
        ("/predict", b"{", 400, "body: no JSON: Expecting property name"),
        ("/predict", b'\xff\xfe"', 400, "body"),
        ("/predict", b"[" * 50_000, 400, "body"),
        ("/predict", b"[]", 422, "body: input should be a valid dictionary"),
        (
            "/predict",
            json.dumps(STATE | {"kv_cache_percentage": 2}).encode(),
            422,
            "body.kv_cache_percentage: input should be less",
        ),
        ("/predict", json.dumps(STATE | {"prefix_cache_score": float("nan")}).encode(), 422, "body.prefix_cache_score"),
        ("/predict", json.dumps(STATE | {"input_token_length": 10**30}).encode(), 422, "body.input_token_length"),
        ("/predict", json.dumps(STATE | {"input_token_length": 5000}).encode(), 409, "input_token_length: a request of 5005"),
        ("/predict/bulk", b'{"requests": []}', 422, "body.requests: list should have at least 1 item"),
        ("/step", b'{"batches": [{"num_new_tokens": [0], "num_computed_tokens": [0]}]}', 422, "body.batches.0.num_new_tokens.0"),
        ("/step", b'{"batches": [{"num_new_tokens": [1], "num_computed_tokens": [0, 1]}]}', 409, "1 num_new_tokens but 2"),
        ("/step", b'{"batches": [{"num_new_tokens": [1], "num_computed_tokens": [0], "n": 1}]}', 422, "extra inputs are not"),
        (
            "/step",
            b'{"batches": [{"num_new_tokens": [1], "num_computed_tokens": [600]}]}',
            409,
            "601 tokens in one request where 512",
        ),
        ("/step", b" " * 100_001, 413, "body: larger than 100000 bytes"),
        ("/nowhere", b"", 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(client: TestClient, path: str, body: bytes, status: int, rule: str) -> None:
    """A 4xx whose one line names the place and the rule."""
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    detail = answer.json()["detail"]
    assert rule in detail
    assert "\n" not in detail


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
def test_json_says_what_it_is(client: TestClient, headers: dict[str, str]) -> None:
    """415 names the header: the body is not read as JSON without it."""
    answer = client.post("/predict", content=json.dumps(STATE).encode(), headers=headers)
    assert answer.status_code == 415
    assert answer.json()["detail"] == f"content-type: {headers.get('content-type', 'none')}; send application/json"


def test_a_body_that_does_not_come_is_waited_for_no_longer(slot: ModelSlot) -> None:
    """408: it is the client that took too long."""

    async def ask() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: Any) -> None:  # noqa: ANN401 - as ASGI has it
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
        await create_app(slot, ServiceLimits(seconds=0.1))(scope, receive, send)
        return sent

    sent = asyncio.run(ask())
    assert sent[0]["status"] == 408
    assert b"body: has not come within 0.1 s" in sent[1]["body"]


def test_whole_numbers_are_taken_however_they_are_written(client: TestClient) -> None:
    """144.0 is an integer in JSON Schema; 144.5, "144" and true are none."""
    counts = [name for name, value in STATE.items() if isinstance(value, int)]
    same = client.post("/predict", json=STATE | {name: float(STATE[name]) for name in counts}).json()
    assert same["ttft_ms"] == client.post("/predict", json=STATE).json()["ttft_ms"]
    batch = {"num_new_tokens": [1, 2.0], "num_computed_tokens": [30.0, 0], "num_new_requests": 1.0}
    assert client.post("/step", json={"batches": [batch]}).status_code == 200
    for wrong in (144.5, "144", True):
        assert client.post("/predict", json=STATE | {"input_token_length": wrong}).status_code == 422
        assert client.post("/step", json={"batches": [batch | {"num_new_tokens": [1, wrong]}]}).status_code == 422


def test_batches_of_too_many_requests_are_not_read(slot: ModelSlot) -> None:
    """However many bytes a body may have: what takes long to read keeps all others waiting."""
    wide = {"num_new_tokens": [1] * 8192, "num_computed_tokens": [0] * 8192}
    with TestClient(create_app(slot)) as client:
        answer = client.post("/step", json={"batches": [wide] * 17})
        assert (answer.status_code, answer.json()["detail"]) == (
            413,
            "body.batches: 139264 requests in all; send up to 131072 at once",
        )
        assert client.post("/step", json={"batches": [wide] * 16, "extrapolate": True}).status_code == 200
        assert client.post("/step", json={"batches": [wide | {"num_new_tokens": [1]}] * 17}).status_code == 413


def test_a_body_that_does_not_say_how_long_it_is_is_bounded_too(client: TestClient) -> None:
    """What comes in pieces is counted as it comes."""
    answer = client.post("/step", content=(b" " * 1000 for _ in range(101)), headers={"content-type": "application/json"})
    assert (answer.status_code, "larger than 100000 bytes" in answer.json()["detail"]) == (413, True)


def test_an_answer_that_takes_too_long_is_cut_off(slot: ModelSlot) -> None:
    """503, and the service goes on."""
    with TestClient(create_app(slot, ServiceLimits(seconds=1e-4))) as slow:
        answer = slow.post("/predict/bulk", json={"requests": [STATE] * 500})
        assert answer.status_code == 503
        assert "took longer than 0.0001 s" in answer.json()["detail"]


def test_work_that_is_given_up_is_bounded(slot: ModelSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests ran out of time: no more is under way than there are threads, and what waited is never begun."""
    ends, begun = threading.Event(), []

    def endless(*_asked: object) -> list[Any]:
        begun.append(threading.current_thread())
        ends.wait(30)
        return []

    body = {"batches": [{"num_new_tokens": [1], "num_computed_tokens": [1]}] * 65}
    monkeypatch.setattr("dooly.adapters.service._app._steps", endless)
    with TestClient(create_app(slot, ServiceLimits(seconds=0.1, num_threads=2))) as client:
        assert [client.post("/step", json=body).status_code for _ in range(8)] == [503] * 8
        assert len(begun) == 2
        ends.set()
        until = time.monotonic() + 10
        while client.post("/step", json=body).status_code != 200:
            assert time.monotonic() < until
        assert len(set(begun)) == 2


def test_work_that_is_given_up_ends_with_its_piece(slot: ModelSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide bulks that ran out of time leave their threads to the next."""
    priced, prices = [], LatencyModel.steps_ns

    def slow(latency: LatencyModel, batches: BatchArrays) -> Any:  # noqa: ANN401 - as it has it
        priced.append(len(batches))
        time.sleep(0.3)
        return prices(latency, batches)

    monkeypatch.setattr("dooly.adapters._pieces._MOST_PLACES", 256)
    monkeypatch.setattr(LatencyModel, "steps_ns", slow)
    with TestClient(create_app(slot, ServiceLimits(seconds=0.2, num_threads=1))) as client:
        assert client.post("/predict/bulk", json={"requests": [STATE] * 1000}).status_code == 503
        time.sleep(1)
    assert len(priced) <= 2


def test_short_work_waits_for_no_thread(slot: ModelSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    """While all threads are taken, what takes a few milliseconds is answered, and what takes longer waits its time out."""
    ends = threading.Event()
    monkeypatch.setattr(Bulk, "all_or_none", lambda *_asked: ends.wait(30))
    batch = {"num_new_tokens": [1], "num_computed_tokens": [1]}
    wide = {"num_new_tokens": [1] * 4097, "num_computed_tokens": [1] * 4097}
    with TestClient(create_app(slot, ServiceLimits(seconds=0.5, num_threads=1))) as client:
        assert client.post("/predict/bulk/strict", json={"requests": [STATE] * 65}).status_code == 503
        assert client.post("/predict/bulk", json={"requests": [STATE] * 64}).status_code == 200
        assert client.post("/step", json={"batches": [batch] * 64}).status_code == 200
        for long in ([batch] * 65, [wide]):
            assert client.post("/step", json={"batches": long, "extrapolate": True}).status_code == 503
        chunks = STATE | {"input_token_length": 500, "num_request_running": 7, "prefix_cache_score": 0}
        assert client.post("/predict/bulk", json={"requests": [chunks] * 64}).status_code == 503
        ends.set()


def test_a_wide_batch_among_many_takes_little_memory(slot: ModelSlot) -> None:
    """As if each were priced alone, and not all in arrays as wide as the widest: 64 MiB for each of them."""
    small = {"num_new_tokens": [1], "num_computed_tokens": [1]}
    wide = {"num_new_tokens": [1] * 8192, "num_computed_tokens": [1] * 8192}
    with TestClient(create_app(slot)) as client:
        alone = client.post("/step", json={"batches": [wide], "extrapolate": True}).json()["steps"]
        tracemalloc.start()
        found = client.post("/step", json={"batches": [small] * 1023 + [wide], "extrapolate": True}).json()["steps"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found[-1]["seconds"] == pytest.approx(alone[0]["seconds"])
    assert peak < 100 << 20


def test_an_error_of_our_own_is_told_without_its_traceback(slot: ModelSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 in one line; the log has the rest."""
    with TestClient(create_app(slot), raise_server_exceptions=False) as broken:
        monkeypatch.setattr(slot, "served", None)
        answer = broken.post("/predict", json=STATE)
        assert (answer.status_code, answer.json()["detail"]) == (500, "an error of Dooly's own; its log has the traceback")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*STATE, "batches", "requests"]), inner, max_size=4)
    ),
    max_leaves=12,
)
NUMBERS = st.integers(-2, 200) | st.integers() | st.floats() | st.none()
PREDICTIONS = st.fixed_dictionaries(dict.fromkeys(STATE, NUMBERS)) | JSON
BATCHES = st.fixed_dictionaries(
    {"num_new_tokens": st.lists(NUMBERS, max_size=4), "num_computed_tokens": st.lists(NUMBERS, max_size=4)},
    optional={"num_new_requests": NUMBERS},
)
BODIES = st.one_of(
    st.tuples(st.just("/predict"), PREDICTIONS),
    st.tuples(
        st.sampled_from(["/predict/bulk", "/predict/bulk/strict"]), st.fixed_dictionaries({"requests": st.lists(PREDICTIONS)})
    ),
    st.tuples(
        st.just("/step"), st.fixed_dictionaries({"batches": st.lists(BATCHES | JSON, max_size=4), "extrapolate": st.booleans()})
    ),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(BODIES)
def test_no_body_breaks_the_service(client: TestClient, asked: tuple[str, Any]) -> None:
    """Whatever JSON comes, the answer is one of the contract or a 4xx of one line."""
    path, body = asked
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code in {200, 400, 409, 422}, answer.text
    if answer.status_code != 200:
        assert "\n" not in answer.json()["detail"]


def test_facts_and_metrics(client: TestClient) -> None:
    """What is served, that it is ready, and how many requests of each path ended how."""
    status = client.get("/status").json()
    assert (status["model"], status["is_ready"], status["store_refused"]) == ("llama-3.1-8b", True, None)
    assert "RTX PRO 6000" in status["device"]
    assert (client.get("/healthz").status_code, client.get("/readyz").status_code) == (200, 200)
    client.get("/some/../path")
    text = client.get("/metrics").text
    assert re.search(r'dooly_requests_total\{path="/predict",status="200"\} [1-9]', text)
    assert re.search(r'dooly_requests_total\{path="/step",status="413"\} [1-9]', text)
    assert 'path="other"' in text
    assert "nowhere" not in text
    assert re.search(r"dooly_model_loaded_timestamp_seconds 1\.\d+e\+09", text)
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/predict", "/predict/bulk", "/step", "/metrics"}


def test_drafts_are_refused(model: ModelSource, serving: ServingConfig) -> None:
    """A step that puts out several tokens is no token's time."""
    drafting = replace(serving, speculative_config=SpeculativeConfig("ngram", 3, (0.7, 0.5, 0.3)))
    with pytest.raises(InvalidInputError, match="speculative decoding is not predicted"):
        ModelSlot(model, drafting, hardware="rtxpro6000")


def test_limits_make_sense() -> None:
    """No time, no byte and a negative pause are refused, and so is what is not finite."""
    endless = ({name: float(value)} for name in ("seconds", "reload_s") for value in ("inf", "nan"))
    for wrong in ({"body_bytes": 0}, {"seconds": 0}, {"reload_s": -1}, *endless):
        with pytest.raises(InvalidInputError, match="ServiceLimits"):
            ServiceLimits(**wrong)  # type: ignore[arg-type]  # as a caller may
