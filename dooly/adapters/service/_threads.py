"""Threads beside the service's event loop that never hold its process back."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    Tasks = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]

Answer = TypeVar("Answer")
Asked = ParamSpec("Asked")


class DaemonThreads(Executor):
    """Some threads that a process which ends does not wait for, unlike those of `ThreadPoolExecutor`, whatever they are at.

    They start with the first work, and anew with the first after a shutdown. Only the event loop's thread submits and shuts down.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        """Take how many threads there are at most, and their name."""
        self._num_threads, self._name = num_threads, name
        self._tasks: Tasks = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, fn: Callable[Asked, Answer], /, *args: Asked.args, **kwargs: Asked.kwargs) -> Future[Answer]:
        """Have a thread do some work when one is free."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=_work, args=(self._tasks,), name=f"{self._name}_{number}", daemon=True)
                for number in range(self._num_threads)
            ]
            for thread in self._threads:
                thread.start()
        future: Future[Answer] = Future()
        self._tasks.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as Executor has it
        """End the threads once they have done what there is, or only what they are at; wait for that, or go on."""
        tasks, threads = self._tasks, self._threads
        self._tasks, self._threads = SimpleQueue(), []
        if cancel_futures:
            _cancel(tasks)
        for _ in threads:
            tasks.put(None)
        for thread in threads if wait else ():
            thread.join()


def _work(tasks: Tasks) -> None:
    """Do what is asked until told to end."""
    while (task := tasks.get()) is not None:
        _do(*task)
        del task  # a thread that waits holds no answer


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    """Do some work, unless nobody waits for it any longer."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        answer = work()
    except BaseException as error:  # noqa: BLE001 - it is whoever asked for the work that is told
        future.set_exception(error)
    else:
        future.set_result(answer)


def _cancel(tasks: Tasks) -> None:
    """Drop what no thread has begun."""
    while True:
        try:
            task = tasks.get_nowait()
        except Empty:
            return
        if task is not None:
            task[0].cancel()
