"""Linear layers that no traced model needs to hold: a product without a bias is known by its widths and its element type."""

from __future__ import annotations

from dooly.tracing import TracedDim, TracedOperation, TracedTensor

_ITEM_BYTES = 2


def plain_linear(n: int, k: int, dtype: str) -> TracedOperation:
    """Return a linear layer x[num_tokens, k] · weight[n, k] without a bias, under the signature that tracing gives it.

    Args:
        n: Outputs.
        k: Inputs.
        dtype: Element type of 16 bits of weight and activations.
    """
    from passes.signature import SCHEME, from_json, sign

    nodes = [f"parameter {dtype}[{n}, {k}]", f"input {dtype}[request, {k}]", f"t {{}} {dtype}[{k}, {n}]"]
    nodes += [f"mm {{}} {dtype}[request, {n}]", "request"]
    edges = [[0, 2, "0"], [1, 3, "0"], [2, 3, "1"], [4, 1, "axis 0"], [4, 3, "axis 0"]]
    canonical = {"scheme": SCHEME, "nodes": nodes, "edges": edges}
    tokens = TracedDim("num_tokens", "request", None)
    outputs, inputs = (TracedDim(str(size), "config", size) for size in (n, k))
    weight = TracedTensor(dtype, (outputs, inputs), is_parameter=True)
    flops, traffic = f"{2 * n * k}*num_tokens", f"{_ITEM_BYTES * (n + k)}*num_tokens + {_ITEM_BYTES * n * k}"
    return TracedOperation(
        signature=sign(from_json(canonical)),
        name=f"linear_{n}_{k}",
        module=f"linear_{n}_{k}",
        module_class="Linear",
        stage="decoder",
        stateful=False,
        count=1,
        placements=((f"linear_{n}_{k}", 1),),
        inputs=(weight, TracedTensor(dtype, (tokens, inputs), is_parameter=False)),
        outputs=(TracedTensor(dtype, (tokens, outputs), is_parameter=False),),
        flops=flops,
        bytes=traffic,
        request_dims=("num_tokens",),
        request_flops=flops,
        request_bytes=traffic,
        attributes={},
        canonical=canonical,
    )
