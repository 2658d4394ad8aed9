"""Profile on the devices of a Ray cluster: each worker measures its share of the operations into the one store.

A store needs no lock, and a profile measures what it lacks; so a share that Ray starts again elsewhere, when its worker or the
worker's machine is lost, goes on where it ended.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dbstore import Store
from dooly.errors import InvalidInputError, MeasurementError, pip_install
from dooly.measure._adaptive import TARGET_ERROR
from dooly.measure.engine import profile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dooly.engines import ModelSource, ServingConfig
    from dooly.measure._result import ProfileResult

    Share = tuple[int, int]

_TIMES_TAKEN_OVER = 3
"""How often a share is started again where its worker was lost."""


def profile_on_ray(  # noqa: PLR0913 - one argument an option of `dooly profile`
    model: ModelSource,
    store: str,
    serving: ServingConfig | None = None,
    *,
    address: str,
    budget_s: float | None = None,
    target_error: float = TARGET_ERROR,
) -> ProfileResult:
    """Measure the operations of a model that a store lacks, on all devices of a cluster at once.

    Args:
        model: The model to profile; its folder lies at the same path on each machine.
        store: Path or URL of the store, which each machine reaches.
        serving: The engine's limits, which bound the batches.
        address: What `ray.init` takes, or `local` for a cluster of this machine.
        budget_s: Seconds that each worker measures at most.
        target_error: As for `profile`.

    Raises:
        InvalidInputError: There is no such cluster, or Ray is not installed.
        MeasurementError: A share was lost again and again.
    """
    Store.open(store, "a")  # made, or refused, before any worker starts

    def measure(share: Share) -> ProfileResult:
        return profile(model, Store.open(store, "a"), serving, budget_s=budget_s, target_error=target_error, share=share)

    return combined(run_shares(measure, address))


def combined(results: Sequence[ProfileResult]) -> ProfileResult:
    """Return the result of all shares: what they measured and left together, in as long as the slowest took."""
    errors = [result.expected_error for result in results if result.expected_error is not None]
    least = [(result.known_least, result.least_floor) for result in results if result.known_least is not None]
    known_least, floor = max(least, key=lambda found: found[0][1], default=(None, None))
    return replace(
        results[0],
        num_measured=sum(result.num_measured for result in results),
        num_unsteady=sum(result.num_unsteady for result in results),
        num_spoiled=sum(result.num_spoiled for result in results),
        num_left=sum(result.num_left for result in results),
        measuring_s=max(result.measuring_s for result in results),
        expected_error=max(errors, default=None),
        known_least=known_least,
        least_floor=floor,
        num_infeasible=sum(result.num_infeasible for result in results),
    )


def run_shares(measure: Callable[[Share], Any], address: str, num_workers: int | None = None) -> list[Any]:
    """Call a function for each share on a device of its own, and return the results in order.

    Args:
        measure: Measures a share, given its number and how many there are; started again where its worker was lost.
        address: As for `profile_on_ray`.
        num_workers: Workers; None for one a GPU, or one a machine where there are none.

    Raises:
        InvalidInputError: There is no such cluster, or Ray is not installed.
        MeasurementError: A share was lost again and again.
    """
    ray = _started(address, num_workers)
    try:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        count = num_workers or num_gpus or max(1, sum(map(bool, cores)))
        needs = {"num_gpus": 1} if num_gpus else {"num_cpus": _cores_each(cores, count), "scheduling_strategy": "SPREAD"}
        # A worker ends with its share, and frees its device.
        remote = ray.remote(max_retries=_TIMES_TAKEN_OVER, max_calls=1, **needs)(measure)
        running = [remote.remote((number, count)) for number in range(count)]
        try:
            return list(ray.get(running))
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
            line = " ".join(str(error).split())
            raise MeasurementError(
                f"--ray: a worker was lost {_TIMES_TAKEN_OVER + 1} times ({line}); what was measured is kept, run it again"
            ) from error
    finally:
        ray.shutdown()


def _cores_each(cores: Sequence[int], count: int) -> int:
    """Return how many cores each of so many workers may have on machines of so many each, the smallest of them included.

    A worker that asks for fewer than it measures on has others beside it, and is told by Ray to run as few threads.
    """
    machines = [number for number in cores if number]
    return max(1, min(machines, default=1) * len(machines) // count)


def _started(address: str, num_workers: int | None) -> Any:  # noqa: ANN401 - the module
    """Return Ray, connected to a cluster."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"--ray: Ray is not installed; install it with {pip_install('ray')}") from error
    num_cores = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    settings: dict[str, Any] = {"num_cpus": max(num_workers or 1, num_cores)} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise InvalidInputError(
            f"--ray: no cluster at {address!r} ({line}); start one with `ray start`, or give local"
        ) from error
    return ray
