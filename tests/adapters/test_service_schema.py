"""The HTTP service keeps its own schema: what `/openapi.json` allows is answered, and what it forbids is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from dooly.adapters.service import ServiceLimits, create_app

if TYPE_CHECKING:
    from dooly.adapters.service import ModelSlot

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'dooly-llm[test]' brings it")


@pytest.fixture(scope="module")
def api(slot: ModelSlot) -> schemathesis.BaseSchema:
    """The schema that the service publishes; lists that are too long for it are refused for that, and not for their bytes."""
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(slot, ServiceLimits(body_bytes=64 << 20)))


@pytest.mark.parametrize("mode", [*schemathesis.GenerationMode], ids=str)
@pytest.mark.parametrize("path", ["/predict", "/predict/bulk", "/predict/bulk/strict", "/step"])
def test_it_takes_what_its_schema_allows_and_no_more(
    api: schemathesis.BaseSchema, path: str, mode: schemathesis.GenerationMode
) -> None:
    """No answer of 5xx, none that the schema does not have, no refusal of what it allows, no answer to what it forbids."""

    @settings(max_examples=10, deadline=None, suppress_health_check=[*HealthCheck])
    @given(api[path]["POST"].as_strategy(generation_mode=mode))
    def keeps(case: schemathesis.Case) -> None:
        case.call_and_validate()

    keeps()
