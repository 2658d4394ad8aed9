"""From an engine's serving settings to the simulator's."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.kv_cache_groups import AttentionKind
from dooly.kv_policy import Term
from dooly.simulation._make_scheduler import scheduled_as, scheduler_class
from dooly.simulation._scheduler_config import SchedulerConfig
from dooly.speculation import HEAD_METHODS

if TYPE_CHECKING:
    from dooly.engines import ServingConfig
    from dooly.kv_cache_groups import KVCacheGroup
    from dooly.kv_policy import KVPolicy
    from dooly.predict import LatencyModel

_SHAPES_A_TABLE = ("dtype", "tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel")
"""Settings that a model's table of operations, and so its latencies, are made for."""
_ALIKE = (
    *("max_model_len", "max_num_seqs", "max_num_active_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens"),
    *("long_prefill_token_threshold", "long_prefill_token_threshold_adaptive", "enable_chunked_prefill"),
    *("scheduler_reserve_full_isl", "watermark"),
)
"""Settings of the same name and meaning in both."""
_MIN_BLOCKS = 2
"""The null block and one to use."""


def scheduler_config(serving: ServingConfig, latency: LatencyModel) -> SchedulerConfig:
    """Return the simulator's scheduler settings for an engine's serving settings.

    Args:
        serving: The settings that the latency model was made with.
        latency: Tells the KV cache that the engine makes of them, and whether it schedules ahead.

    Raises:
        InvalidInputError: The KV cache is too small for the longest request, for which no engine would start; or the latency
            model was made for another layout or element type; or there are a policy and drafts.
        UnsupportedModelError: The model caches something that the scheduler does not model, or not as a policy needs it.

    Examples:
        >>> model = dooly.find_model("llama-3.1-8b")
        >>> serving = dooly.default_serving(model, "h200")
        >>> config = dooly.scheduler_config(serving, dooly.load_latency_model(model=model, hardware="h200"))
        >>> config.max_num_seqs, config.num_kv_blocks > 40_000
        (1024, True)
    """
    for name in _SHAPES_A_TABLE:
        made = latency.traced.environment.get(name, getattr(serving, name))
        if made != getattr(serving, name):
            raise InvalidInputError(
                f"scheduler_config: {name} is {getattr(serving, name)}, and was {made} when the latency model was made; give "
                "both the same settings"
            )
    layout, policy = latency.kv_cache_layout(serving), serving.kv_policy
    if policy is not None:
        _check_policy(policy, serving, latency.traced.model, layout.groups)
    num_kv_blocks, block_size = _num_kv_blocks(serving, latency), layout.block_size
    if num_kv_blocks < _MIN_BLOCKS:
        given = "--kv-cache-memory-bytes" if serving.num_gpu_blocks_override is None else "--num-gpu-blocks-override"
        raise InvalidInputError(
            f"{given}: the KV cache has {num_kv_blocks} blocks of {block_size} tokens; give enough for at least {_MIN_BLOCKS}"
        )
    needed = sum(_most_blocks(group, serving, block_size) for group in layout.groups)
    if needed > num_kv_blocks and serving.num_gpu_blocks_override is None:
        raise InvalidInputError(
            f"--max-model-len: a request of {serving.max_model_len:,} tokens needs {needed:,} KV blocks of {block_size}, and "
            f"there is room for {num_kv_blocks:,}; lower it, or make room by more --tensor-parallel-size, "
            "--gpu-memory-utilization or --kv-cache-memory-bytes"
        )
    return SchedulerConfig(
        **{name: getattr(serving, name) for name in _ALIKE},
        num_kv_blocks=num_kv_blocks,
        block_size=block_size,
        policy=serving.scheduling_policy,
        enable_prefix_caching=serving.enable_prefix_caching
        and scheduler_class(latency.environment.engine).caches_prefixes
        and _is_cached_by_default(layout.groups)
        and not (policy is not None and policy.changes(Term.CACHING)),
        kv_cache_groups=layout.groups,
        async_scheduling=latency.schedules_ahead,
        speculative=serving.speculative_config,
        kv_policy=policy,
        num_attention_layers=sum(op.count for op in latency.traced.operations if op.depends_on_context),
        engine=scheduled_as(latency.environment.engine),
    )


def _check_policy(policy: KVPolicy, serving: ServingConfig, model: str, groups: tuple[KVCacheGroup, ...]) -> None:
    """Refuse a policy where `SchedulerConfig` does, by the names that users gave."""
    if others := {group.kind.replace("_", " ") for group in groups} - {"full attention"}:
        raise UnsupportedModelError(
            f"--kv-policy: {model}: {policy} is simulated only where all layers have full attention, and some have "
            f"{', '.join(sorted(others))}; leave --kv-policy out, or choose another model"
        )
    if serving.speculative_config is not None:
        raise InvalidInputError(
            f"--kv-policy: {model}: {policy} is not simulated where tokens are drafted; leave out --kv-policy or "
            "--speculative-config"
        )


def _num_kv_blocks(serving: ServingConfig, latency: LatencyModel) -> int:
    """Return the blocks of the KV cache: fewer where a drafter's head caches as much as one layer more."""
    num_blocks, speculative = latency.num_kv_blocks(serving), serving.speculative_config
    if speculative is None or speculative.method not in HEAD_METHODS or serving.num_gpu_blocks_override is not None:
        return num_blocks
    num_layers = sum(op.count for op in latency.traced.operations if op.depends_on_context)
    return num_blocks * num_layers // (num_layers + 1)


def _most_blocks(group: KVCacheGroup, serving: ServingConfig, block_size: int) -> int:
    """Return the blocks of a group that the longest request holds at most, as the engine counts them before it starts."""
    if group.kind is AttentionKind.MAMBA:
        return 1 + group.num_prefill_checkpoint_blocks
    longest, unaligned = serving.max_model_len, 0
    if group.window is not None:
        sliding = group.kind is AttentionKind.SLIDING_WINDOW
        longest, unaligned = min(longest, group.window - sliding + serving.max_num_batched_tokens), int(sliding)
    return ceil(longest / block_size) + unaligned


def _is_cached_by_default(groups: tuple[KVCacheGroup, ...]) -> bool:
    """Return whether the engine looks for prefixes: not where nothing but recurrent states is cached."""
    return any(group.kind is not AttentionKind.MAMBA for group in groups)
