"""The engine settings that decide a schedule, checked as the engine checks them."""

from __future__ import annotations

from dataclasses import dataclass

from dooly.engines import ENGINES
from dooly.errors import InvalidInputError, spell
from dooly.kv_cache_groups import FULL_ATTENTION, AttentionKind, KVCacheGroup
from dooly.kv_policy import KVPolicy, Term
from dooly.speculation import SpeculativeConfig  # noqa: TC001 - part of a field's type, which users may ask for


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """The engine settings that decide a schedule, under vLLM's names; the defaults are those of `ServingConfig`, then vLLM's.

    Examples:
        >>> dooly.simulation.SchedulerConfig(max_model_len=2048, num_kv_blocks=4096).block_size
        16
    """

    max_model_len: int
    """Longest sequence, prompt and output together."""
    num_kv_blocks: int
    """Blocks in the KV cache as the engine reports them, its null block included."""
    max_num_seqs: int = 64
    """Most requests in one step."""
    max_num_active_seqs: int | None = None
    """Most requests running at once, where they shall be fewer than `max_num_seqs`."""
    max_num_batched_tokens: int = 2048
    """Most tokens computed in one step."""
    max_num_scheduled_tokens: int | None = None
    """Most tokens scheduled for one step, where they shall be fewer than `max_num_batched_tokens`."""
    block_size: int = 16
    """Tokens in a KV block."""
    enable_chunked_prefill: bool = True
    """Whether a prompt may be computed over several steps to fit the budget."""
    long_prefill_token_threshold: int = 0
    """Most prompt tokens one request may compute in a step while there are others; 0 sets no such limit."""
    long_prefill_token_threshold_adaptive: bool = False
    """Whether that limit is never below a request's fair share of `max_num_batched_tokens`, of all that run or wait."""
    prefill_schedule_interval: int = 1
    """Steps of which one takes prompts while others decode. vLLM heeds it in data-parallel ranks that share a model's experts."""
    scheduler_reserve_full_isl: bool = True
    """Whether a request is admitted only if its whole prompt fits in the free blocks, not just the first chunk."""
    watermark: float = 0.0
    """Fraction of the KV blocks kept free when admitting a request beside running ones, from 0 to below 1."""
    policy: str = "fcfs"
    """Who is served first, and preempted last: `fcfs`, who came first; `priority`, whose is lower, then who came first."""
    enable_prefix_caching: bool = True
    """Whether tokens that are in the cache already, another request's or a preempted one's own, are not computed again."""
    kv_cache_groups: tuple[KVCacheGroup, ...] = FULL_ATTENTION
    """The groups of layers that hold the same blocks, in the order of their first layers."""
    async_scheduling: bool = False
    """Whether the next step is scheduled while one runs, as vLLM does by itself: tokens come out a step later."""
    speculative: SpeculativeConfig | None = None
    """How tokens are drafted, and how many of them are accepted; None where none are."""
    kv_policy: KVPolicy | None = None
    """What is kept of prompts, or computed of their attention; None for all."""
    num_attention_layers: int | None = None
    """Layers of attention, of which a sparse prefill computes the first whole; None where that is to count as none."""
    engine: str = "vllm"
    """Whose rules the schedule follows: vLLM's, also for engines whose own are not simulated, or `transformers`."""

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "prefill_schedule_interval"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"SchedulerConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.num_kv_blocks < 2:  # noqa: PLR2004 -- the null block and one to use
            raise InvalidInputError(
                f"SchedulerConfig: num_kv_blocks must be at least 2 (one is the null block), got {self.num_kv_blocks}"
            )
        self._check_names()
        self._check_lower_limits()
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidInputError(
                f"SchedulerConfig: max_num_batched_tokens {self.max_num_batched_tokens} must be at least "
                f"max_num_seqs {self.max_num_seqs}; raise the first or lower the second"
            )
        if not self.enable_chunked_prefill and self.token_budget < self.max_model_len:
            name = "max_num_batched_tokens" if self.max_num_scheduled_tokens is None else "max_num_scheduled_tokens"
            raise InvalidInputError(
                f"SchedulerConfig: without chunked prefill {name} {self.token_budget} must be at least "
                f"max_model_len {self.max_model_len}; raise it or enable chunked prefill"
            )
        if not 0 <= self.long_prefill_token_threshold <= self.max_model_len:
            raise InvalidInputError(
                f"SchedulerConfig: long_prefill_token_threshold must lie in 0..{self.max_model_len} (max_model_len), "
                f"got {self.long_prefill_token_threshold}"
            )
        if not 0 <= self.watermark < 1:
            raise InvalidInputError(f"SchedulerConfig: watermark must lie in [0, 1), got {self.watermark}")
        self._check_groups()
        if self.speculative is not None:
            self._check_speculative(self.speculative)
        self._check_policy()

    def _check_policy(self) -> None:
        if (policy := self.kv_policy) is None:
            return
        if self.kv_cache_groups != FULL_ATTENTION:
            raise InvalidInputError(
                f"SchedulerConfig: kv_policy: {policy} is simulated only where all layers have full attention; set it to None"
            )
        if self.speculative is not None:
            raise InvalidInputError(
                f"SchedulerConfig: kv_policy: {policy} is not simulated where tokens are drafted; set it or speculative to None"
            )
        if self.enable_prefix_caching and policy.changes(Term.BLOCKS):
            raise InvalidInputError(
                f"SchedulerConfig: kv_policy: blocks with what {policy} keeps of a prompt hold no other's beginning; set "
                "enable_prefix_caching to False"
            )

    def _check_speculative(self, speculative: SpeculativeConfig) -> None:
        if self.kv_cache_groups != FULL_ATTENTION:
            raise InvalidInputError(
                "SchedulerConfig: speculative: simulated only where all layers have full attention; leave it out"
            )
        if self.async_scheduling and not speculative.allows_async_scheduling:
            raise InvalidInputError(
                f"SchedulerConfig: vLLM schedules no step ahead with {speculative.method}; set async_scheduling to False"
            )
        shortest = 1 + speculative.num_speculative_tokens
        limits = (self.token_budget, self.long_prefill_token_threshold or shortest)
        if min(limits) < shortest:
            raise InvalidInputError(
                f"SchedulerConfig: max_num_batched_tokens and long_prefill_token_threshold must have room for a token and its "
                f"{speculative.num_speculative_tokens} drafts, got {limits[0]} and {limits[1]}; raise them or draft fewer"
            )

    def _check_names(self) -> None:
        if self.policy not in {"fcfs", "priority"}:
            raise InvalidInputError(f"SchedulerConfig: policy must be fcfs or priority, got {self.policy!r}")
        if self.engine not in ENGINES:
            raise InvalidInputError(f"SchedulerConfig: engine: {spell(self.engine)} is not one of {', '.join(ENGINES)}")

    def _check_lower_limits(self) -> None:
        for name, most in (("max_num_active_seqs", "max_num_seqs"), ("max_num_scheduled_tokens", "max_num_batched_tokens")):
            value, limit = getattr(self, name), getattr(self, most)
            if value is not None and not 1 <= value <= limit:
                raise InvalidInputError(f"SchedulerConfig: {name} must lie in 1..{limit} ({most}), got {value}")

    @property
    def num_seats(self) -> int:
        """Most requests running at once."""
        return self.max_num_active_seqs or self.max_num_seqs

    @property
    def token_budget(self) -> int:
        """Most tokens scheduled for one step."""
        return self.max_num_scheduled_tokens or self.max_num_batched_tokens

    def _check_groups(self) -> None:
        if not self.kv_cache_groups:
            raise InvalidInputError("SchedulerConfig: kv_cache_groups must hold at least one; leave it out for full attention")
        is_recurrent = any(group.kind is AttentionKind.MAMBA for group in self.kv_cache_groups)
        if is_recurrent and self.enable_prefix_caching and not self.enable_chunked_prefill:
            raise InvalidInputError(
                "SchedulerConfig: prefix caching of recurrent states needs chunked prefill; set enable_chunked_prefill, "
                "or enable_prefix_caching to False"
            )
