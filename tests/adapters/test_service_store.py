"""The HTTP service over a store that changes under it."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient

from dbstore import Record, Store
from dooly.adapters.service import ModelSlot, ServiceLimits, create_app
from dooly.batch import Batch
from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.engines import ModelSource, ServingConfig


@pytest.fixture
def place(imported: Path, tmp_path: Path) -> Path:
    """A store of its own."""
    return shutil.copytree(imported, tmp_path / "db")


def _faster(place: Path, store: Store) -> None:
    """Measure a layer of products again, on a faster machine: the least busy of several measurements counts."""
    from dooly.tracing import TracedModel

    (digest,) = store.documents("traces")
    document: Any = store.read_document("traces", digest)
    (products,) = (op for op in TracedModel.from_json(document["traced"]).operations if op.name == "down_proj")
    for record in store.read(products.signature, document["environment"]):
        Store.open(place, "a").write(Record(*record.key, record.point, record.samples_ns // 4))


def test_a_store_that_changed_is_served_once_it_rests(place: Path, model: ModelSource, small: ServingConfig) -> None:
    """One look sees the change, a second that it is done; the model that is served is then another, whole."""
    slot = ModelSlot(model, small, store=str(place))
    first = slot.served
    assert not slot.refresh()
    _faster(place, Store.open(place))
    assert not slot.refresh()
    assert slot.served is first
    assert slot.refresh()
    assert slot.served is not first
    batch = Batch((1,), (100,))
    assert slot.served.latency.step(batch).seconds < 0.95 * first.latency.step(batch).seconds
    assert slot.refusal is None
    assert not slot.refresh()


def test_a_store_that_cannot_be_served_leaves_what_was(
    place: Path, model: ModelSource, small: ServingConfig, idle: dict[str, float], tmp_path: Path
) -> None:
    """Damaged or gone, the service says so and answers as before; repaired, it takes it up again."""
    slot = ModelSlot(model, small, store=str(place))
    first = slot.served
    moved = place.rename(tmp_path / "elsewhere")
    assert not slot.refresh()
    assert slot.served is first
    assert "holds no latency store" in (slot.refusal or "")
    with TestClient(create_app(slot, ServiceLimits(reload_s=0))) as client:
        assert client.post("/predict", json=idle).status_code == 200
        assert "holds no latency store" in client.get("/status").json()["store_refused"]
        assert "dooly_store_refused 1.0" in client.get("/metrics").text
    moved.rename(place)
    assert not slot.refresh()
    assert slot.refusal is None
    (chunk, *_) = sorted(place.glob("records/*/*/*/samples_ns/c/0"))
    _faster(place, Store.open(place))
    chunk.write_bytes(b"damaged")
    assert [slot.refresh(), slot.refresh(), slot.refresh()] == [False, False, False]
    assert slot.served is first
    assert slot.refusal is not None


def test_a_store_that_is_written_while_it_is_read_is_read_again(
    place: Path, model: ModelSource, small: ServingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of a store that changed meanwhile is dropped."""
    slot = ModelSlot(model, small, store=str(place))
    first = slot.served
    _faster(place, Store.open(place))
    assert not slot.refresh()
    load = slot._load

    def written_meanwhile(fingerprint: str | None) -> Any:  # noqa: ANN401 - as it loads
        loaded = load(fingerprint)
        environment = Store.open(place).documents("environments")[0]
        record = next(iter(Store.open(place).read(*next(Store.open(place).keys()))))
        Store.open(place, "a").write(Record(record.signature, environment, {"num_tokens": 77}, record.samples_ns))
        return loaded

    monkeypatch.setattr(slot, "_load", written_meanwhile)
    assert not slot.refresh()
    assert slot.served is first


@pytest.mark.parametrize("error", [ConnectionResetError("connection reset by peer"), KeyError("relative_error")])
def test_a_store_that_could_not_be_read_once_is_read_again(
    place: Path, model: ModelSource, small: ServingConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A share that was away tells nothing of what it holds, nor does an error that nobody foresaw: both are tried again."""
    slot = ModelSlot(model, small, store=str(place))
    first, load = slot.served, slot._load
    _faster(place, Store.open(place))

    def once(_fingerprint: str | None) -> Any:  # noqa: ANN401 - as it loads
        monkeypatch.setattr(slot, "_load", load)
        raise error

    monkeypatch.setattr(slot, "_load", once)
    assert [slot.refresh(), slot.refresh()] == [False, False]
    assert slot.served is first
    assert str(error) in (slot.refusal or "")
    assert slot.refresh()
    assert slot.served is not first
    assert slot.refusal is None


def _refusing(
    model: ModelSource, small: ServingConfig, place: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ModelSlot, list[str | None]]:
    """Return a slot that has served, and refuses what its store has become, and the contents that it reads from then on."""
    slot = ModelSlot(model, small, store=str(place))
    reads: list[str | None] = []
    _faster(place, Store.open(place))

    def refused(fingerprint: str | None) -> Any:  # noqa: ANN401 - as it loads
        reads.append(fingerprint)
        raise InvalidInputError("records: none is of this model; profile it")

    monkeypatch.setattr(slot, "_load", refused)
    return slot, reads


def test_what_is_refused_for_its_content_is_not_read_again(
    place: Path, model: ModelSource, small: ServingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it changes: reading takes seconds, and would end as before."""
    slot, reads = _refusing(model, small, place, monkeypatch)
    assert not any(slot.refresh() for _ in range(5))
    assert len(reads) == 1
    assert slot.refusal == "records: none is of this model; profile it"


def test_a_refusal_is_told_again_when_an_outage_is_over(
    place: Path, model: ModelSource, small: ServingConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A share that goes and comes back with what was refused before: for that, and no longer for the outage."""
    slot, reads = _refusing(model, small, place, monkeypatch)
    assert not any(slot.refresh() for _ in range(2))
    moved = place.rename(tmp_path / "elsewhere")
    assert not slot.refresh()
    assert "holds no latency store" in (slot.refusal or "")
    moved.rename(place)
    assert not slot.refresh()
    assert slot.refusal == "records: none is of this model; profile it"
    assert len(reads) == 1


def test_the_watch_outlives_errors_that_nobody_foresaw(
    place: Path, model: ModelSource, small: ServingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that fails is told as a store's refusal, and the next one finds the store as it was."""
    slot, look = ModelSlot(model, small, store=str(place)), ModelSlot._look

    def broken(_self: ModelSlot) -> str | None:
        raise ZeroDivisionError("nobody foresaw this")

    with TestClient(create_app(slot, ServiceLimits(reload_s=0.02))) as client:
        for place_look, told in ((broken, "ZeroDivisionError: nobody foresaw this"), (look, None)):
            monkeypatch.setattr(ModelSlot, "_look", place_look)
            until = time.monotonic() + 30
            while client.get("/status").json()["store_refused"] != told:
                assert time.monotonic() < until
                time.sleep(0.02)


def test_the_service_watches_its_store(place: Path, model: ModelSource, small: ServingConfig) -> None:
    """In the background, while it answers."""
    slot = ModelSlot(model, small, store=str(place))
    with TestClient(create_app(slot, ServiceLimits(reload_s=0.05))) as client:
        before = client.get("/status").json()["last_model_load"]
        _faster(place, Store.open(place))
        until = time.monotonic() + 60
        while client.get("/status").json()["last_model_load"] == before:
            assert time.monotonic() < until
            time.sleep(0.1)
