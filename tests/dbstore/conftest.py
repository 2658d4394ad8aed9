"""An environment and a way to make records, for all store tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dbstore import Environment, Record

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def environment() -> Environment:
    """One complete environment."""
    return Environment(
        device="AMD EPYC 9554",
        device_kind="cpu",
        driver="6.8.0",
        torch_version="2.13.0",
        engine="vllm",
        engine_version="0.32.0",
        attention_backend="CPU_ATTN",
        dtype="bfloat16",
        kv_cache_dtype="auto",
        block_size=128,
        execution_mode="eager",
        quantization=None,
        num_threads=2,
    )


@pytest.fixture(scope="session")
def make_record(environment: Environment) -> Callable[..., Record]:
    """Return a function that makes a record at `num_tokens`, its samples drawn from that number."""

    def make(num_tokens: int, signature: str = "a0", **changes: object) -> Record:
        samples_ns = np.random.default_rng(num_tokens).integers(1, 10**9, 40)
        values: dict[str, Any] = {
            "point": {"num_tokens": num_tokens},
            "samples_ns": samples_ns,
            "attributes": {"wall_s": 0.5},
        } | changes
        return Record(signature, environment.digest, **values)

    return make
