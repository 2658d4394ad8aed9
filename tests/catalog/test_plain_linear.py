"""Linear layers that are known by their widths alone."""

from __future__ import annotations

from dooly.catalog import operation_table, plain_linear
from dooly.engines import ServingConfig, find_model
from dooly.tracing import evaluate_form


def test_a_plain_layer_is_the_one_that_tracing_finds() -> None:
    """Signature, FLOPs and bytes of a plain layer of a model's widths are those of the model's own."""
    table = operation_table(find_model("llama-3.1-8b"), ServingConfig())
    layers = {op.name: op for op in table.operations if op.name in {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}}
    assert len(layers) == 4
    for layer in layers.values():
        n, k = (dim.value for dim in next(t for t in layer.inputs if t.is_parameter).shape)
        assert n is not None
        assert k is not None
        plain = plain_linear(n, k, "bfloat16")
        assert plain.signature == layer.signature
        for form in ("request_flops", "request_bytes"):
            assert evaluate_form(getattr(plain, form), {"num_tokens": 7}) == evaluate_form(
                getattr(layer, form), {"num_tokens": 7}
            )


def test_widths_tell_layers_apart() -> None:
    """Outputs and inputs may not change places, and another element type is another operation."""
    known = {plain_linear(n, k, dtype).signature for n, k in ((64, 32), (32, 64)) for dtype in ("bfloat16", "float16")}
    assert len(known) == 4
