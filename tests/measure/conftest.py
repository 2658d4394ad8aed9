"""Make traced operations by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dooly.tracing import TracedOperation

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def operation() -> Callable[..., TracedOperation]:
    """Return a function that makes a decoder operation over `num_tokens`, with any field replaced."""

    def make(signature: str, module: str, **fields: Any) -> TracedOperation:  # noqa: ANN401 - the fields' own types
        values: dict[str, Any] = {
            "signature": signature,
            "name": module.rpartition(".")[2],
            "module": module,
            "module_class": "Linear",
            "stage": "decoder",
            "stateful": False,
            "count": 1,
            "placements": ((module, fields.get("count", 1)),),
            "inputs": (),
            "outputs": (),
            "flops": "0",
            "bytes": "0",
            "request_dims": ("num_tokens",),
            "request_flops": "0",
            "request_bytes": "0",
            "attributes": {},
            "canonical": {},
        }
        return TracedOperation(**(values | fields))

    return make
