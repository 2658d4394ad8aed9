from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.batch import Batch
from dooly.predict import BatchArrays, OperationWork
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from dbstore import Store


def test_the_cost_of_attention_is_by_its_context(store: Store) -> None:
    """Two decodes at 10 and 20 cached tokens attend to 11 and 21 keys: FLOPs count the pairs, bytes the positions read."""
    (digest,) = store.documents("traces")
    traced = TracedModel.from_json(store.read_document("traces", digest)["traced"])  # type: ignore[arg-type]
    (attention,) = (op for op in traced.operations if op.name == "attention")
    flops, size_bytes = OperationWork(attention).cost(BatchArrays.of([Batch((1, 1), (10, 20)), Batch((4,), (0,))]))
    assert flops.tolist() == [512 * (11 + 21), 512 * (1 + 2 + 3 + 4)]
    assert size_bytes.tolist() == [256 * (11 + 21) + 512 * 2, 256 * 4 + 512 * 4]
