"""Layers, modules and steps over the closed forms of what they run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dbstore import JsonObject
from dooly.catalog import LAYER, MODULE, STEP, key_of, plain_linear
from dooly.measure._wholes import over_parts
from dooly.predict import Points, Rates, Sweep

if TYPE_CHECKING:
    from dooly.catalog import Key
    from dooly.tracing import TracedOperation

RATES = Rates(launch_ns=1000.0, flops_per_ns=1.0, bytes_per_ns=1e9)
TOKENS, REQUESTS = (4, 16, 64), (1, 2, 2)


def _product(signature: str, dim: str, **fields: object) -> TracedOperation:
    product = plain_linear(8, 8, "bfloat16")
    forms = {form: getattr(product, form).replace("num_tokens", dim) for form in ("request_flops", "request_bytes")}
    return replace(product, signature=signature, request_dims=(dim,), **forms, **fields)  # type: ignore[arg-type]


@pytest.fixture
def parts() -> tuple[TracedOperation, ...]:
    """A product over tokens that two layers run twice each, in two rows; one over requests, run once; what is around."""
    return (
        _product("a", "num_tokens", placements=(("model.layers.0.up", 2),), count=2),
        _product("a", "num_tokens", placements=(("model.layers.0.down", 2), ("norm", 1)), count=3),
        _product("b", "num_reqs", placements=(("head", 1),), count=1),
        _product(
            "layer", "batch", name=LAYER, module="model.layers.0", stage="engine", placements=(("model.layers.0", 2),), count=2
        ),
        _product("step", "batch", name=STEP, module="", stage="engine", placements=(("", 1),), count=1),
        _product("module", "batch", name=MODULE, module="", stage="engine", placements=(("", 1),), count=1),
    )


def _swept(parts: tuple[TracedOperation, ...], names: set[str]) -> dict[str, Sweep]:
    """Return the sweeps of some parts by signature, over all."""
    places: list[dict[Key, JsonObject]] = [
        {key_of(op): JsonObject({"d0": {"a": t, "b": r}.get(op.signature, place)}) for op in parts}
        for place, (t, r) in enumerate(zip(TOKENS, REQUESTS, strict=True))
    ]
    operations = {key_of(op): op for op in parts if op.signature in names}
    points = Points(np.zeros((3, 1)), np.zeros(3, dtype=np.int64))
    alone = {key: Sweep(("f",), points, np.full(3, 7.0)) for key in operations}
    return {key[0]: sweep for key, sweep in over_parts(operations, parts, places, alone, RATES).items()}


def _form(size: int) -> float:
    return 1000.0 + 2 * 8 * 8 * size


def test_a_layer_a_step_and_a_module_stand_over_all_that_they_run(parts: tuple[TracedOperation, ...]) -> None:
    """Rows of one signature count each, what lies outside of a layer is not its, and parts stay as they are."""
    found = _swept(parts, {"a", "b", "layer", "step", "module"})
    one = np.array([_form(t) for t in TOKENS])
    everything = 5 * one + np.array([_form(r) for r in REQUESTS])
    np.testing.assert_allclose(found["layer"].roofline_ns, 2 * one)
    np.testing.assert_allclose(found["step"].roofline_ns, everything)
    np.testing.assert_allclose(found["module"].roofline_ns, everything)
    np.testing.assert_array_equal(found["a"].roofline_ns, np.full(3, 7.0))
    assert [name for name, sweep in found.items() if sweep.is_rest] == ["step"]
    rest_ns = np.full(3, 500.0)
    np.testing.assert_allclose(found["step"].logs(np.arange(3), rest_ns), np.log1p(500.0 / everything))


def test_a_whole_of_which_others_measure_parts_stays_by_itself(parts: tuple[TracedOperation, ...]) -> None:
    """A worker whose share lacks what a layer runs does not know the device's rates; one that has it all knows them."""
    np.testing.assert_array_equal(_swept(parts, {"b", "layer", "step"})["layer"].roofline_ns, np.full(3, 7.0))
    shared = _swept(parts, {"a", "layer", "step"})
    assert (shared["layer"].roofline_ns > 7.0).all()
    np.testing.assert_array_equal(shared["step"].roofline_ns, np.full(3, 7.0))


def test_a_layer_of_no_known_operation_stays_by_itself(parts: tuple[TracedOperation, ...]) -> None:
    """Where nothing traced lies in a layer, there are no closed forms to stand on."""
    empty = replace(parts[3], module="model.layers.7")
    (found,) = _swept((*parts[:3], empty), {"layer"}).values()
    np.testing.assert_array_equal(found.roofline_ns, np.full(3, 7.0))
