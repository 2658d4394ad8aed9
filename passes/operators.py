"""What a node of a captured graph does: which operator it is, and whether it computes, exchanges or only re-describes memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

ALLOCATES = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
"""Operators that only set memory aside."""
_COLLECTIVES = frozenset({
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_to_all_single", "broadcast", "gather", "receive", "reduce_scatter",
    "reduce_scatter_tensor", "send",
})  # fmt: skip
WAIT = "_c10d_functional.wait_tensor"
"""Operator that waits for the result of one of PyTorch's collectives."""


def operator_name(node: Node) -> str:
    """Return an operator's name without overload: `mm`, `vllm.fused_moe`; PyTorch's own go without namespace.

    The wrapper that makes an operator functional is seen through.
    """
    target = node.args[0] if is_functionalized(node) else node.target
    name = str(getattr(target, "__name__", target)).split(".")[0]
    namespace = getattr(target, "namespace", "aten")
    return name if namespace == "aten" else f"{namespace}.{name}"


def is_functionalized(node: Node) -> bool:
    """Tell the wrapper that makes an in-place operator functional."""
    return str(node.target).startswith("auto_functionalized")


def is_collective(node: Node) -> bool:
    """Tell operators that exchange tensors between ranks: each is an operation of its own, whatever module calls it."""
    namespace, _, name = operator_name(node).rpartition(".")
    return bool(namespace) and name in _COLLECTIVES


def is_view(node: Node) -> bool:
    """Tell whether a node only re-describes its operand's memory."""
    name = operator_name(node)
    return (name == "getitem" and not _picks_result(node)) or name == "_unsafe_view" or getattr(node.target, "is_view", False)


def source_of(node: Node) -> Node:
    """Return the node that a result picker (`getitem` of a multi-output operator) takes its value from, else the node."""
    return node.args[0] if _picks_result(node) else node  # type: ignore[return-value]


def _picks_result(node: Node) -> bool:
    return operator_name(node) == "getitem" and not is_view(node.args[0])  # type: ignore[arg-type]


def writes_back(node: Node) -> bool:
    """Tell the copy that ends an in-place operator made functional, on one of the graph's inputs: the operator wrote there."""
    if operator_name(node) != "copy_" or node.args[0].op != "placeholder":  # type: ignore[union-attr]
        return False
    return is_functionalized(source_of(node.args[1]))  # type: ignore[arg-type]


def is_tensor_code(node: Node) -> bool:
    """Tell nodes that hold or compute tensors from arithmetic on sizes."""
    if node.op != "call_function":
        return False
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return value is None or any(hasattr(v, "dtype") and hasattr(v, "shape") for v in values)


def returned_values(node: Node) -> tuple[Any, ...]:
    """Return what an in-place operator returns by itself, where the graph has it as a functional one; else nothing.

    Such an operator's further results are the operands that it wrote to, under new names.
    """
    if not is_functionalized(node):
        return ()
    return tuple(node.meta["val"][: len(node.args[0]._schema.returns)])  # type: ignore[union-attr]  # noqa: SLF001 - no public name


def picks_written_operand(node: Node) -> bool:
    """Tell an operand that an in-place operator wrote to, where the operator returns its results as well: the same memory."""
    source = source_of(node)
    return source is not node and 0 < len(returned_values(source)) <= int(node.args[1])  # type: ignore[arg-type]
