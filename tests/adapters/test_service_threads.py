"""Threads beside the event loop."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from dooly.adapters.service._threads import DaemonThreads


def _broken() -> None:
    raise KeyError("nobody foresaw this")


def test_work_is_done_and_errors_are_told() -> None:
    """Each future has what its work returned or raised, and no thread holds the process."""
    threads = DaemonThreads(2, "own")
    assert threads.submit(pow, 2, 10).result(10) == 1024
    with pytest.raises(KeyError, match="nobody foresaw"):
        threads.submit(_broken).result(10)
    assert threads.submit(threading.current_thread).result(10).daemon
    assert threads.submit(threading.current_thread).result(10).name.startswith("own_")
    threads.shutdown()


def test_a_shutdown_waits_for_what_is_asked() -> None:
    """All that was submitted is done; the threads are over, and others start with the next work."""
    threads = DaemonThreads(1, "own")
    futures = [threads.submit(threading.current_thread) for _ in range(3)]
    threads.shutdown()
    first = {future.result(0) for future in futures}
    assert not any(thread.is_alive() for thread in first)
    assert threads.submit(threading.current_thread).result(10) not in first
    threads.shutdown()


def test_a_shutdown_that_does_not_wait_drops_what_was_not_begun() -> None:
    """What is under way ends in its time, and what waited is cancelled."""
    threads, begun, ends = DaemonThreads(1, "own"), threading.Event(), threading.Event()

    def long() -> bool:
        begun.set()
        return ends.wait(30)

    running, waiting = threads.submit(long), threads.submit(long)
    assert begun.wait(10)
    threads.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        waiting.result(10)
    assert not running.done()
    ends.set()
    assert running.result(10) is True


def test_work_that_nobody_waits_for_is_not_begun() -> None:
    """A future that was cancelled while it waited."""
    threads, ends, done = DaemonThreads(1, "own"), threading.Event(), []
    threads.submit(ends.wait, 30)
    dropped = threads.submit(done.append, 1)
    assert dropped.cancel()
    ends.set()
    threads.shutdown()
    assert not done
