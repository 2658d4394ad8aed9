"""Which of the serving settings Transformers' continuous batching has."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from dooly.engines._config import ServingConfig

_TAKEN = (
    *("engine", "dtype", "max_model_len", "max_num_batched_tokens", "max_num_seqs"),
    *("kv_cache_memory_bytes", "num_gpu_blocks_override", "gpu_memory_utilization"),
    *("enable_prefix_caching", "enforce_eager", "async_scheduling"),
)
"""Settings that may differ from their defaults; requests share no blocks, and no step runs ahead, whatever is asked."""


def check_settings(serving: ServingConfig) -> None:
    """Refuse settings that this engine has not.

    Raises:
        InvalidInputError: One of them differs from its default, or a step has room for fewer tokens than requests.
    """
    for field in fields(serving):
        if field.name not in _TAKEN and getattr(serving, field.name) != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            raise InvalidInputError(f"{flag}: --engine {serving.engine} has no such setting; leave it out")
    if serving.enforce_eager is False:
        raise InvalidInputError(f"--no-enforce-eager: --engine {serving.engine} compiles nothing; leave it out")
    if serving.max_num_seqs > serving.max_num_batched_tokens:
        raise InvalidInputError(
            f"--max-num-seqs: {serving.max_num_seqs} is more than --max-num-batched-tokens {serving.max_num_batched_tokens}; "
            "lower it or raise the other"
        )
