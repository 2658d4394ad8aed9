from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from dooly.engines import ServingConfig, find_model

if TYPE_CHECKING:
    from dooly.tracing import TracedModel, TracedOperation

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine


@cache
def traced(name: str) -> TracedModel:
    """Return the table of a listed model."""
    from dooly.engines.vllm import trace_vllm_model

    return trace_vllm_model(find_model(name), ServingConfig())


def linear_layers(name: str) -> dict[str, TracedOperation]:
    """Return the linear layers of a listed model, by signature."""
    return {op.signature: op for op in traced(name).operations if op.module_class.endswith("Linear")}


def weight(operation: TracedOperation) -> tuple[int | None, ...]:
    """Return the shape of a linear layer's weight."""
    return next(tuple(d.value for d in t.shape) for t in operation.inputs if t.parameter is not None)


def test_a_distilled_model_shares_all_but_its_epsilon() -> None:
    """Qwen2.5-32B and the model distilled into it differ in the norms' epsilon, and share all other operations."""
    names = ("qwen2.5-32b", "deepseek-r1-distill-qwen-32b")
    first, second = ({op.signature: op for op in traced(name).operations} for name in names)
    alone = [table[s] for table, other in ((first, second), (second, first)) for s in table.keys() - other.keys()]
    assert {op.module_class for op in alone} == {"RMSNorm"}
    assert len(first.keys() & second.keys()) == len(first) - len(alone) // 2 >= 9


def test_models_of_equal_width_share_their_linear_layers() -> None:
    """Llama-3.1-8B, Mistral-7B and Command-R7B have linear layers of equal sizes, and those are the same operations."""
    tables = [linear_layers(name) for name in ("llama-3.1-8b", "mistral-7b-v0.3", "command-r7b")]
    sizes = [{weight(op): signature for signature, op in table.items()} for table in tables]
    common = set.intersection(*(set(found) for found in sizes))
    assert common == {(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)}
    assert all(len({found[size] for found in sizes}) == 1 for size in common)
