"""Which operators multiply matrices, and how many multiply-adds each does: PyTorch's own and those of serving engines.

An engine's product over packed or scaled weights counts as the product that it stands for, whatever the weights take in memory.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any

import sympy

from passes.graph import dtype_of, shape_of
from passes.operators import is_functionalized, operator_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.fx import Node

    from passes.origins import Origins

_LEFT_FACTOR: Mapping[str, int] = {
    "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "_addmm_activation": 1, "mv": 0, "addmv": 1, "dot": 0, "vdot": 0,
    "_scaled_mm": 0, "_int_mm": 0, "_weight_int8pack_mm": 0, "_weight_int4pack_mm": 0, "_weight_int4pack_mm_for_cpu": 0,
}  # fmt: skip
"""Position of the left factor among the arguments of each matrix product."""
_GROUPED: Mapping[str, int] = {
    "_grouped_mm": 0, "_scaled_grouped_mm": 0, "addbmm": 1, "transformers.grouped_mm_fallback": 0,
}  # fmt: skip
"""Position of the left factor of each product of groups of rows, each with a right factor of its own."""
_RECURRENT = frozenset({"mkldnn_rnn_layer", "_cudnn_rnn"})
"""Recurrent layers: each step multiplies its input and the state before it by all weights."""
_MULTIPLIES = re.compile(
    r"(^|[._])(\w*[mb]m|\w*mv|\w*dot|matmul|\w*gemm|\w*linear|conv(\dd|olution)|rnn|linalg_(?!vector_norm))(_|$)"
)
"""Names of operators that multiply matrices, whoever defines them."""
_ENGINES: Mapping[str, tuple[str, str | None]] = {
    "_C.cutlass_scaled_mm": ("a", "out"),
    "_C.cutlass_scaled_mm_azp": ("a", "out"),
    "_C.cutlass_scaled_fp4_mm": ("a", "out"),
    "_C.cutlass_w4a8_mm": ("a", None),
    "vllm.marlin_gemm": ("a", None),
    "_C.machete_mm": ("a", None),
    "_C.awq_gemm": ("_in_feats", None),
    "_C.gptq_gemm": ("a", None),
    "vllm.fp8_gemm_nt_op": ("q_input", "output"),
    "vllm.w8a8_triton_block_scaled_mm_func": ("qx", None),
    "vllm.triton_w4a16_gemm": ("a", None),
    "vllm.matmul_mxf4_bf16": ("x", None),
    "vllm.matmul_nvf4_bf16": ("x", None),
    "vllm.cuda_flashinfer_bf16_gemm": ("x", None),
    "vllm.fp32_router_gemm_dispatch": ("x", None),
    "vllm.bf16x3_router_gemm": ("X", None),
    "vllm.min_latency_fused_qkv_a_proj": ("input_", None),
}
"""Products of engines: the argument that is the left factor, and the one that the result is written to, unless it is returned."""


def product_flops(node: Node, origins: Origins) -> sympy.Expr | None:  # noqa: PLR0911 - one return a kind of product
    """Return twice the multiply-adds of a matrix product, attention, convolution or recurrent layer; 0 for any other operator.

    None for one that multiplies, by its name, and has no closed form here.
    """
    name = operator_name(node)
    shapes = [_named_shape(a, origins) for a in node.args]
    if name in _LEFT_FACTOR:
        return 2 * prod(_named_shape(node, origins)) * shapes[_LEFT_FACTOR[name]][-1]
    if name in _ENGINES:
        return _engine_flops(node, *_ENGINES[name], origins)
    if name in _GROUPED:
        left, right = shapes[_GROUPED[name] :][:2]
        groups = left[0] if len(left) == len(right) == 3 else 1  # noqa: PLR2004 - otherwise the groups share out one dimension
        return 2 * groups * left[-2] * left[-1] * right[-1]
    if name.startswith("_scaled_dot_product"):
        query, key, value = shapes[:3]
        return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if name == "convolution":
        taps = prod(shapes[1]) / shapes[1][0]
        is_transposed = node.args[6]
        return 2 * taps * prod(shapes[0] if is_transposed else _named_shape(node, origins))
    if name in _RECURRENT:
        return _step_flops(node, shapes, origins)
    return None if _MULTIPLIES.search(name) else sympy.Integer(0)


def _step_flops(node: Node, shapes: list[tuple[sympy.Expr, ...]], origins: Origins) -> sympy.Expr:
    matrices = [shape for w in _flat(node.args[1:5]) if len(shape := _named_shape(w, origins)) == len(("output", "input"))]
    return 2 * prod(shapes[0][:-1]) * sum(map(prod, matrices))


def _flat(arguments: object) -> Iterator[object]:
    """Yield arguments, those in lists one by one."""
    for argument in arguments if isinstance(arguments, (tuple, list)) else ():
        yield from _flat(argument) if isinstance(argument, (tuple, list)) else (argument,)


def _engine_flops(node: Node, left: str, out: str | None, origins: Origins) -> sympy.Expr:
    named = _named_arguments(node)
    factor, result = named[left], node if out is None else named[out]
    # Two elements of four bits lie in one byte.
    packed = 2 if dtype_of(factor) == "uint8" else 1
    return 2 * packed * prod(_named_shape(result, origins)) * _named_shape(factor, origins)[-1]


def _named_arguments(node: Node) -> dict[str, Any]:
    """Return an operator's arguments by their names in its schema, those that it writes to included."""
    if not is_functionalized(node):
        schema: Any = node.target._schema  # type: ignore[union-attr]  # noqa: SLF001 - no public name
        return dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    suffix, bases = "_base_index", node.kwargs["_all_bases"]
    written = {
        name.removeprefix("_").removesuffix(suffix): bases[place]  # type: ignore[index]
        for name, place in node.kwargs.items()
        if name.endswith(suffix) and place is not None
    }
    return dict(node.kwargs) | written


def _named_shape(argument: object, origins: Origins) -> tuple[sympy.Expr, ...]:
    """Return a tensor's shape over named symbols; of several results, the first one's; empty for what is no tensor."""
    shape = shape_of(argument) if hasattr(argument, "meta") else None
    return tuple(map(origins.rename, shape or ()))
