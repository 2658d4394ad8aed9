"""Where simulations run: in this process, in one for each core, or on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from dooly.errors import DoolyError, InvalidInputError, pip_install
from dooly.searching._evaluation import Evaluation, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dooly.searching._candidate import Candidate
    from dooly.searching._load import Load

    Submit = Callable[[Candidate, float], Future[Evaluation | str]]
    """Starts a simulation at a request rate."""

_loads: list[Load] = []
"""The requests that this process serves to candidates, where another started it."""


@contextmanager
def open_workers(load: Load, num_processes: int | None, ray_address: str | None) -> Iterator[Submit]:
    """Give what starts simulations, for as long as the scope lasts. Each process is sent the requests once.

    Args:
        load: The requests that candidates serve.
        num_processes: Processes on this machine, 1 for this very one; None for one a core.
        ray_address: A Ray cluster in their place: what `ray.init` takes, or `local` for one of so many processes on this machine.

    Raises:
        InvalidInputError: There is no such cluster, it is told how many processes it has, or Ray is not installed.
        DoolyError: A process was killed while the scope lasted.
    """
    if ray_address is not None:
        if num_processes is not None and ray_address != "local":
            raise InvalidInputError(f"--processes: the cluster at {ray_address!r} has its own; leave it out, or --ray")
        with _ray(load, ray_address, num_processes) as submit:
            yield submit
        return
    num_processes = num_processes or getattr(os, "process_cpu_count", os.cpu_count)() or 1
    pool: ThreadPoolExecutor | ProcessPoolExecutor
    task: Callable[[Candidate, float], Evaluation | str]
    if num_processes == 1:
        pool, task = ThreadPoolExecutor(1), partial(_simulate, load)
    else:
        context = multiprocessing.get_context("spawn")
        pool, task = ProcessPoolExecutor(num_processes, context, _start_process, (load,)), _simulate_there
    try:
        yield lambda candidate, rate: pool.submit(task, candidate, rate)
    except BrokenProcessPool as error:
        raise DoolyError(
            f"search: one of {num_processes} processes was killed, perhaps as memory ran out; go on with fewer --processes, "
            "and with --state FILE, which keeps what is done"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _simulate(load: Load, candidate: Candidate, rate: float) -> Evaluation | str:
    return evaluate(candidate, load.at(rate), rate)


def _simulate_there(candidate: Candidate, rate: float) -> Evaluation | str:
    """Simulate in a process that was started with the requests."""
    return _simulate(_loads[0], candidate, rate)


def _start_process(load: Load) -> None:
    """Take the requests; leave interrupts to the process that started this one, and end when it does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _loads[:] = [load]
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _ray(load: Load, address: str, num_processes: int | None) -> Iterator[Submit]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"--ray: Ray is not installed; install it with {pip_install('ray')}") from error
    try:
        settings: dict[str, Any] = {"num_cpus": num_processes} if address == "local" else {}
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise InvalidInputError(
            f"--ray: no cluster at {address!r} ({line}); start one with `ray start`, or give local"
        ) from error
    remote, held = ray.remote(_simulate), ray.put(load)
    try:
        yield lambda candidate, rate: remote.remote(held, candidate, rate).future()
    finally:
        ray.shutdown()
