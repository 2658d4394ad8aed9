"""How many engines serve, in which roles and behind which router, as command lines and searches say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError, UnsupportedModelError, spell
from dooly.simulation._disaggregation import simulate_disaggregated
from dooly.simulation._fleet import Replica, simulate_fleet
from dooly.simulation._kv_transfer import KVTransfer
from dooly.simulation._prefix_router import PrefixAware
from dooly.simulation._router import LeastLoaded, RoundRobin
from dooly.simulation._vllm_router import VllmBalancing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.engines import ServingConfig
    from dooly.predict import Interconnect, LatencyModel
    from dooly.simulation._fleet_result import FleetResult
    from dooly.simulation._router import Router
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._step_log import StepLog
    from dooly.simulation._workload import Workload

ROUTERS: dict[str, type[Router]] = {
    "vllm": VllmBalancing,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix-aware": PrefixAware,
}
"""Routers by name."""


@dataclass(frozen=True, slots=True)
class FleetLayout:
    """Engines alike, each for all of a request, or some that prefill and others that decode."""

    data_parallel_size: int = 1
    """Engines that serve requests whole; 1 where others are apart by role."""
    router: str | None = None
    """What sends requests to them, a name of `ROUTERS`; None for vLLM's own balancing, or between roles for the least loaded."""
    prefill_replicas: int = 0
    """Engines that prefill; 0 where all do everything."""
    decode_replicas: int = 0
    """Engines that decode."""
    kv_transfer: Interconnect | None = None
    """The link that each of their ranks moves KV caches over."""

    def __post_init__(self) -> None:
        apart = (self.prefill_replicas, self.decode_replicas)
        if self.data_parallel_size < 1:
            raise InvalidInputError(f"--data-parallel-size: {self.data_parallel_size} is not at least 1")
        if min(apart) < 0 or (not min(apart)) != (not max(apart)):
            raise InvalidInputError(
                f"--prefill-replicas, --decode-replicas: {apart[0]} and {apart[1]} make no fleet; give both, at least 1 each"
            )
        if self.is_disaggregated and self.data_parallel_size > 1:
            raise InvalidInputError("--data-parallel-size: counts engines that do both; leave it out beside --prefill-replicas")
        if self.is_disaggregated != (self.kv_transfer is not None):
            raise InvalidInputError(
                "--kv-transfer: says over which link KV caches go between --prefill-replicas and --decode-replicas, as "
                "bandwidth=50,latency=20; give all three or none"
            )
        if self.router is not None and self.router not in ROUTERS:
            raise InvalidInputError(f"--router: {spell(self.router)} is none of {', '.join(ROUTERS)}")
        if self.router is not None and self.num_replicas == 1:
            raise InvalidInputError("--router: one engine needs none; leave it out, or give --data-parallel-size as well")

    @property
    def is_disaggregated(self) -> bool:
        """Whether prefill and decode have engines of their own."""
        return self.prefill_replicas > 0

    @property
    def num_replicas(self) -> int:
        """Engines in all."""
        return self.prefill_replicas + self.decode_replicas or self.data_parallel_size

    @property
    def router_name(self) -> str:
        """What sends requests to engines."""
        return self.router or ("least-loaded" if self.is_disaggregated else "vllm")

    @property
    def label(self) -> str:
        """How many engines, in short: as `4`, `4 round-robin`, or of those that prefill and those that decode, `1+3`."""
        number = str(self.num_replicas)
        if self.is_disaggregated:
            number = f"{self.prefill_replicas}+{self.decode_replicas}"
        return number if self.router is None else f"{number} {self.router}"

    def serve(
        self,
        workload: Workload,
        latency: LatencyModel,
        config: SchedulerConfig,
        serving: ServingConfig,
        steps: Sequence[StepLog] | None = None,
    ) -> FleetResult:
        """Serve a workload in virtual time.

        Args:
            workload: The requests.
            latency: Prices the steps of each engine.
            config: The settings of each.
            serving: What these were made of.
            steps: A log for each, filled with its steps, where they are given; those that prefill come first.

        Raises:
            InvalidInputError: There is a KV-cache policy, and prefill and decode have engines of their own.
            UnsupportedModelError: vLLM would share the experts of a mixture over the engines; or a KV cache that cannot be moved.
            WorkloadError: A request is too long.
        """
        router, replica = ROUTERS[self.router_name], Replica(latency, config)
        if self.num_replicas == 1:
            return simulate_fleet(workload, [replica], steps=steps)
        if self.kv_transfer is None:
            if self.router_name == "vllm" and any("num_experts" in op.attributes for op in latency.traced.operations):
                raise UnsupportedModelError(
                    f"--data-parallel-size: vLLM's engines share the experts of {latency.traced.model} and run in step, which is "
                    "not priced yet; give another --router, for engines of their own"
                )
            return simulate_fleet(workload, [replica] * self.data_parallel_size, router, steps=steps)
        if (policy := config.kv_policy) is not None and policy.budget < 1:
            raise InvalidInputError(
                f"--kv-policy: {latency.traced.model}: {policy} is not simulated between engines that prefill and engines "
                "that decode; leave out --kv-policy, or --prefill-replicas and --decode-replicas"
            )
        link, block_bytes = self.kv_transfer, latency.kv_cache_layout(serving).block_bytes
        return simulate_disaggregated(
            workload,
            [replica] * self.prefill_replicas,
            [replica] * self.decode_replicas,
            KVTransfer(block_bytes, link.bytes_per_s, link.latency_ns),
            router,
            steps=steps,
        )
