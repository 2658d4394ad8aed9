from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dbstore import JsonObject
from dooly.batch import Batch
from dooly.catalog import (
    LAYER,
    STEP,
    batch_at,
    engine_operations,
    parameter_bytes,
    point_at,
    point_of,
    sizes_at,
)
from dooly.errors import UnsupportedModelError
from dooly.tracing import TracedDim, TracedModel, TracedOperation, TracedTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., TracedOperation]

BATCH = Batch((1, 1, 30), (40, 20, 0), 1)


def test_a_point_holds_what_the_latency_depends_on(operation: Make) -> None:
    """Linear layers see the tokens, sampling the requests, attention each request, the step the new requests as well."""
    attention = operation("t", "layers.0.attn", stateful=True, request_dims=("num_tokens", "query_key_pairs", "kv_tokens"))
    step = operation("s", "", stage="engine", stateful=True)
    requests = [[1, 20], [1, 40], [30, 0]]
    assert point_of(operation("a", "q"), BATCH) == JsonObject({"d0": 32})
    assert point_of(operation("r", "sampler", request_dims=("num_reqs",)), BATCH) == JsonObject({"d0": 3})
    assert point_of(attention, BATCH) == JsonObject({"batch": requests})
    assert point_of(step, BATCH) == JsonObject({"batch": requests, "num_new_requests": 1})


@pytest.mark.parametrize(
    ("dims", "point"),
    [
        ((), {}),
        (("32*num_tokens",), {"d0": 1024}),
        (("floor(num_tokens/3)", "num_reqs"), {"d0": 10, "d1": 3}),
        (("num_reqs*num_tokens",), {"d0": 96}),
    ],
)
def test_sizes_are_expressions_of_the_batch(operation: Make, dims: tuple[str, ...], point: dict[str, int]) -> None:
    """Each dimension has its value, whatever expression it is, and goes by its place; an operation of none has one point."""
    found = point_of(operation("a", "q", request_dims=dims), BATCH)
    assert found == point
    assert sizes_at([found, found], dims).tolist() == [list(point.values())] * 2


def test_names_of_dimensions_are_the_models_own(operation: Make) -> None:
    """A linear layer over tokens and the same one over `batch*seq` or over requests share their points."""
    over_reqs = operation("a", "head", request_dims=("num_reqs",))
    alike = {
        point_of(operation("a", "q"), BATCH),
        point_of(over_reqs, Batch((1,) * 32, (0,) * 32)),
        point_at(("batch*seq",), {"batch": 4, "seq": 8}),
    }
    assert alike == {JsonObject({"d0": 32})}


def test_what_no_batch_tells_is_named(operation: Make) -> None:
    """An operation over pixels of images is refused in one line."""
    with pytest.raises(UnsupportedModelError, match=r"^operation vision\.proj: runs over num_pixels, but a batch .*; .*$"):
        point_of(operation("a", "vision.proj", request_dims=("num_pixels",)), BATCH)


def test_a_batch_is_read_back_from_its_point(operation: Make) -> None:
    """Requests come in the order of the point, with the new ones where it tells them."""
    step = operation("s", "", stage="engine", stateful=True)
    assert batch_at(point_of(step, BATCH)) == Batch((1, 1, 30), (20, 40, 0), 1)


def test_the_order_of_requests_does_not_make_a_point(operation: Make) -> None:
    """Attention over the same requests in another order is the same point."""
    attention = operation("t", "layers.0.attn", stateful=True)
    assert point_of(attention, Batch((1, 2), (5, 6))) == point_of(attention, Batch((2, 1), (6, 5)))


def test_each_kind_of_layer_and_the_step_are_operations(operation: Make) -> None:
    """Layers count as often as their modules; what identifies them is what they run, not where."""
    modules = (
        operation("e", "model.embed_tokens"),
        operation("q", "model.layers.0.q", count=5),
        operation("w", "model.layers.0.attn", count=5),
        operation("f", "model.layers.5.attn", count=1),
    )
    found = engine_operations(TracedModel("m", {}, modules), ())
    assert [(op.name, op.module, op.count, op.stage) for op in found] == [
        (LAYER, "model.layers.0", 5, "engine"),
        (LAYER, "model.layers.5", 1, "engine"),
        (STEP, "", 1, "engine"),
    ]
    renamed = tuple(operation(op.signature, op.module.replace("model.", "net."), count=op.count) for op in modules)
    assert [op.signature for op in engine_operations(TracedModel("n", {}, renamed), ())] == [op.signature for op in found]
    other = engine_operations(TracedModel("m", {}, (*modules, operation("k", "model.layers.0.k", count=5))), ())
    assert [ours.signature == theirs.signature for ours, theirs in zip(found, other, strict=True)] == [False, True, True]


def test_a_compiled_model_has_no_layers_of_its_own(operation: Make) -> None:
    """A piece ends one layer and begins the next, so that beside pieces there is the step alone."""
    piece = operation("p", "model.layers.1.attn", name="piece", module_class="", count=4)
    traced = TracedModel("m", {}, (piece, operation("a", "model.layers.1.attn", count=4)))
    assert [op.is_piece for op in traced.operations] == [True, False]
    assert [op.name for op in engine_operations(traced, ())] == [STEP]


def test_the_steps_identity_covers_code_outside_modules(operation: Make) -> None:
    """What no module runs is measured with the step, so another such code is another step operation."""
    traced = TracedModel("m", {}, (operation("q", "model.layers.0.q"),))
    layer, step = engine_operations(traced, ())
    layer_of_other, other = engine_operations(traced, (operation("x", ""),))
    assert layer_of_other.signature == layer.signature
    assert other.signature != step.signature


def _tensor(dtype: str, *sizes: int, is_parameter: bool) -> TracedTensor:
    return TracedTensor(dtype, tuple(TracedDim(str(n), "config", n) for n in sizes), is_parameter)


def test_parameters_are_counted_in_bytes(operation: Make) -> None:
    """Weights count in their type's bytes, activations and tables looked up by index do not."""
    weight, bias = (_tensor("bfloat16", *sizes, is_parameter=True) for sizes in ((8, 4), (8,)))
    activation = TracedTensor("bfloat16", (TracedDim("num_tokens", "request", None), *weight.shape[1:]), is_parameter=False)
    index = TracedTensor("int64", activation.shape[:1], is_parameter=False)
    assert parameter_bytes(operation("a", "q", inputs=(activation, weight, bias))) == 2 * (32 + 8)
    assert parameter_bytes(operation("e", "embed", inputs=(index, weight))) == 0
    piece = operation("k", "attn", name="piece", module_class="", inputs=(index, weight), request_bytes="12*num_tokens + 64")
    assert parameter_bytes(piece) == 64, "a table among a piece's parameters does not hide the others"
    packed = _tensor("int32", 8, 2, is_parameter=True)
    assert parameter_bytes(operation("p", "q", inputs=(activation, packed))) == 4 * 16
