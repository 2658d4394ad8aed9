"""Prefill and decode on engines of their own (disaggregation), as vLLM's NIXL connector does it.

A prefill replica computes a prompt and its first token, and keeps the blocks. The request then goes to a decode replica, which
loads them as soon as it has room, and goes on from there; then the prefill replica frees them (Zhong et al., *DistServe*, OSDI
2024; Patel et al., *Splitwise*, ISCA 2024).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.kv_cache_groups import AttentionKind
from dooly.simulation._fleet import check_fleet, one_each
from dooly.simulation._fleet_result import FleetResult, ReplicaResult, joined
from dooly.simulation._kv_transfer import Links
from dooly.simulation._pool import run
from dooly.simulation._results import RequestTimes
from dooly.simulation._router import LeastLoaded
from dooly.simulation._senders import Senders
from dooly.simulation._side import Side
from dooly.simulation._workload import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.simulation._fleet import MakeRouter, Replica
    from dooly.simulation._kv_transfer import KVTransfer
    from dooly.simulation._pool import Pool
    from dooly.simulation._step_log import StepLog
    from dooly.simulation._workload import Request, Workload


def simulate_disaggregated(  # noqa: PLR0913 - two kinds of replicas, what is between them, and how requests go
    workload: Workload,
    prefill: Sequence[Replica],
    decode: Sequence[Replica],
    transfer: KVTransfer,
    router: MakeRouter = LeastLoaded,
    *,
    passes_first_token: bool = False,
    steps: Sequence[StepLog] | None = None,
) -> FleetResult:
    """Serve a workload in virtual time with replicas that prefill and replicas that decode.

    Args:
        workload: The requests.
        prefill: Engines that compute prompts, at least one.
        decode: Engines that generate, at least one.
        transfer: What moving a request's blocks takes. A link moves one request's at a time.
        router: Makes what chooses the prefill replica of each request, and another that chooses its decode replica once its
            prompt is computed.
        passes_first_token: Whether users see the first token of the prefill replica. With vLLM they do not: its decode replica
            computes the prompt's last token again, and generates all tokens itself.
        steps: A log for each replica, those that prefill first, filled with its steps, where they are given.

    Raises:
        InvalidInputError: `workload` is none, a side has no replica, blocks differ in size, or `steps` are not as many.
        UnsupportedModelError: A replica's KV cache has other groups than those of full attention.
        WorkloadError: A request is too long for a replica; nothing is simulated then.
        DoolyError: Whatever a replica's `latency` raises for a step that it cannot price.
    """
    caller, replicas = "simulate_disaggregated", [*prefill, *decode]
    for some in (prefill, decode):
        check_fleet(caller, workload, some)
    _check(replicas)
    started_s = time.perf_counter()
    logs = one_each(caller, steps, len(replicas))
    requests, later = workload.requests, _outputs(workload.requests, passes_first_token=passes_first_token)
    first = Side("prefill", _prompts(requests), prefill, router, logs[: len(prefill)])
    num_remote = [request.num_prompt_tokens for request in requests]
    second = Side("decode", later, decode, router, logs[len(prefill) :], num_remote)
    links = Links(transfer, len(prefill), len(decode))
    hand_over = _HandOver(workload, first, second, links, passes_first_token=passes_first_token)
    hand_over.serve_all()
    found = [(side.role, result) for side in (first, second) for result in side.results()]
    parts = [result for _role, result in found if result is not None]
    generating = [result for role, result in found if result is not None and role == "decode"]
    whole = joined(hand_over.rows(), parts, time.perf_counter() - started_s, generating)
    placements = {f"{side.role}_replica": tuple(side.pool.chosen.tolist()) for side in (first, second)}
    return FleetResult(whole, tuple(ReplicaResult(role, result) for role, result in found), placements)


def _check(replicas: Sequence[Replica]) -> None:
    """Refuse what cannot be moved from one engine to another."""
    sizes = sorted({replica.config.block_size for replica in replicas})
    if len(sizes) > 1:
        raise InvalidInputError(f"simulate_disaggregated: KV blocks have {sizes} tokens; give all replicas the same block_size")
    kinds = {group.kind for replica in replicas for group in replica.config.kv_cache_groups}
    if others := kinds - {AttentionKind.FULL_ATTENTION}:
        raise UnsupportedModelError(
            f"simulate_disaggregated: KV caches of {', '.join(sorted(others))} are not moved between engines yet; serve such a "
            "model with simulate_fleet"
        )


def _prompts(requests: Sequence[Request]) -> tuple[Request, ...]:
    """Return what prefill replicas serve: each prompt, and one token."""
    return tuple(replace(request, num_output_tokens=1) for request in requests)


def _outputs(requests: Sequence[Request], *, passes_first_token: bool) -> tuple[Request, ...]:
    """Return what decode replicas serve: all that was asked, or the rest behind the token that was passed on."""
    if not passes_first_token:
        return tuple(requests)
    sizes = ((request, request.num_prompt_tokens, request.num_output_tokens) for request in requests)
    return tuple(
        replace(request, num_prompt_tokens=prompt + 1, num_output_tokens=output - 1) if output > 1 else request
        for request, prompt, output in sizes
    )


class _HandOver:
    """How requests go from users to prefill replicas, from there to decode replicas, and their KV caches after them."""

    def __init__(self, workload: Workload, first: Side, second: Side, links: Links, *, passes_first_token: bool) -> None:
        self._workload = workload
        self._senders = Senders(workload)
        self._first = first
        self._second = second
        self._links = links
        self._passes_first_token = passes_first_token

    def serve_all(self) -> None:
        """Run both sides until every request has ended."""
        for request, arrival_ns in self._senders.first():
            self._first.send(request, arrival_ns)
        run([self._first.pool, self._second.pool], self._after, coupled=True)

    def _after(self, pool: Pool, place: int, finished: npt.NDArray[np.int64]) -> None:
        now_ns = pool.replicas[place].acted_ns
        if pool is self._first.pool:
            for request in finished.tolist():
                self._pass_on(request, place, now_ns)
            return
        for load in self._second.remotes[place].take_started():
            self._move(*load, receiver=place, now_ns=now_ns)
        self._end(finished.tolist(), now_ns)

    def _end(self, finished: Sequence[int], now_ns: int) -> None:
        """Let users whose requests have ended send the next ones."""
        for request, arrival_ns in self._senders.next(finished, now_ns):
            self._first.send(request, arrival_ns)

    def _pass_on(self, request: int, place: int, now_ns: int) -> None:
        """Send a request whose prompt is computed to decode replicas, unless there is nothing left to generate."""
        if self._passes_first_token and self._workload.requests[request].num_output_tokens == 1:
            self._first.engines[place].let_go(request, now_ns)
            self._end((request,), now_ns)
        else:
            self._second.send(request, now_ns)

    def _move(self, request: int, num_tokens: int, num_cached: int, *, receiver: int, now_ns: int) -> None:
        """Move what a decode replica lacks of a request, and let the prefill replica free its blocks then."""
        sender, end_ns = int(self._first.pool.chosen[request]), now_ns
        size = self._second.block_size
        if num_blocks := -(-num_tokens // size) - num_cached // size:
            end_ns = self._links.move(sender, receiver, num_blocks, now_ns)
            self._second.engines[receiver].finish_load(request, end_ns)
        self._first.engines[sender].let_go(request, end_ns)
        if self._passes_first_token:
            first_token_ns = self._first.timelines[sender].first_token_ns[[request]]
            self._second.timelines[receiver].tokens.tick(np.array([request]), first_token_ns)

    def rows(self) -> tuple[RequestTimes, ...]:
        """Return each request's times as its user sees them."""
        first, second = self._first, self._second
        first_token_ns = (first if self._passes_first_token else second).noted("first_token_ns")
        finish_ns = np.where(second.pool.chosen < 0, first.noted("finish_ns"), second.noted("finish_ns"))
        columns = (
            first.timelines[0].arrivals_ns,
            first.noted("scheduled_ns").tolist(),
            first_token_ns.tolist(),
            finish_ns.tolist(),
        )
        return tuple(
            RequestTimes(
                request.request_id,
                arrival_ns / NS_PER_S,
                request.num_prompt_tokens,
                request.num_output_tokens,
                *(ns / NS_PER_S for ns in reached_ns),
            )
            for request, arrival_ns, *reached_ns in zip(self._workload.requests, *columns, strict=True)
        )
