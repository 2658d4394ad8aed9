"""How fast `dooly serve` answers: requests at a fixed rate over loopback, each timed from when it was due.

    python benchmarks/serve_load.py [--rate R] [--seconds S] [--connections N] [--model M] [--hardware H] [--json FILE]

Starts the service itself, asks `/predict` with states drawn at random, and of each hundred one `/predict/bulk` of 32 and one
`/step`. Prints one JSON object: latencies in milliseconds, of all requests and of each path; how late this program sent them,
which is part of these latencies though not the service's doing; errors; processor time of the service, which other processes
do not change, and of this program; the service's memory at the start and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import psutil

if TYPE_CHECKING:
    from collections.abc import Coroutine

Load: TypeAlias = tuple[list[float], list[float], list[int]]
_BULK = 32
_EVERY = 100


def _state(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "kv_cache_percentage": round(float(rng.random()), 3),
        "input_token_length": int(rng.integers(1, 8000)),
        "num_request_waiting": int(rng.integers(0, 20)),
        "num_request_running": int(rng.integers(0, 200)),
        "num_tokens_generated": int(rng.integers(0, 500)),
        "prefix_cache_score": round(float(rng.random()), 3),
    }


def _path(index: int) -> str:
    return {_EVERY - 2: "/predict/bulk", _EVERY - 1: "/step"}.get(index % _EVERY, "/predict")


def _messages(count: int) -> list[bytes]:
    """Return the requests in the order in which they are sent, as bytes."""
    rng, found = np.random.default_rng(0), []
    for index in range(count):
        path, body = _path(index), _state(rng)
        if path == "/predict/bulk":
            body = {"requests": [_state(rng) for _ in range(_BULK)]}
        elif path == "/step":
            body = {"batches": [{"num_new_tokens": [1] * 64, "num_computed_tokens": rng.integers(1, 4000, 64).tolist()}]}
        text = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        found.append(head.encode() + text)
    return found


async def _ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], message: bytes) -> int:
    """Send a request, read its answer whole, and return its status."""
    reader, writer = streams
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    await reader.readexactly(int(length[1]) if length else 0)
    return int(head.split(b" ", 2)[1])


async def _load(host: str, port: int, rate: float, seconds: float, connections: int) -> Load:
    """Send requests at the rate; return how late each was sent and answered, in milliseconds from when due, and its status."""
    messages = _messages(int(rate * seconds))
    free: asyncio.Queue[Any] = asyncio.Queue()
    for _ in range(connections):
        free.put_nowait(await asyncio.open_connection(host, port))
    late_ms, milliseconds, statuses = [0.0] * len(messages), [0.0] * len(messages), [0] * len(messages)
    gc.freeze()  # the messages need no second look
    started_s = time.perf_counter()

    async def one(index: int) -> None:
        due_s = started_s + index / rate
        late_ms[index] = 1e3 * (time.perf_counter() - due_s)
        streams = await free.get()
        statuses[index] = await _ask(streams, messages[index])
        milliseconds[index] = 1e3 * (time.perf_counter() - due_s)
        free.put_nowait(streams)

    async with asyncio.TaskGroup() as asking:
        for index in range(len(messages)):
            await asyncio.sleep(max(0.0, started_s + index / rate - time.perf_counter()))
            asking.create_task(one(index))
    return late_ms, milliseconds, statuses


def _run(load: Coroutine[Any, Any, Load]) -> Load:
    """Run in an event loop that wakes to the microsecond: epoll, on which the usual one stands, counts whole milliseconds."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(load)


def _percentiles(milliseconds: list[float]) -> dict[str, float]:
    p50, p90, p99, longest = np.percentile(milliseconds, [50, 90, 99, 100]).round(3).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "max": longest}


def _busy_s() -> float:
    """Return processor seconds that all processes of this machine have taken."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def main() -> None:
    """Start the service, put it under load, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--hardware", default="h200")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    command = [sys.executable, "-m", "dooly", "serve", asked.model, "--hardware", asked.hardware, "--port", "0"]
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert service.stderr is not None
        place = re.search(r"http://([\d.]+):(\d+)", service.stderr.readline())
        assert place is not None
        process = psutil.Process(service.pid)
        _run(_load(place[1], int(place[2]), asked.rate, 2, asked.connections))
        memory_mb, cpu_s = [process.memory_info().rss / 1e6], sum(process.cpu_times()[:2])
        started_s, busy_s, own_s = time.perf_counter(), _busy_s(), time.process_time()
        late_ms, milliseconds, statuses = _run(_load(place[1], int(place[2]), asked.rate, asked.seconds, asked.connections))
        memory_mb.append(process.memory_info().rss / 1e6)
        cpu_s = sum(process.cpu_times()[:2]) - cpu_s
        own_s = time.process_time() - own_s
        others = (_busy_s() - busy_s - cpu_s - own_s) / (time.perf_counter() - started_s)
    finally:
        service.terminate()
        code = service.wait(20)
    of_paths: dict[str, list[float]] = {}
    for index, ms in enumerate(milliseconds):
        of_paths.setdefault(_path(index), []).append(ms)
    report = {
        "model": asked.model,
        "hardware": asked.hardware,
        "rate_per_s": asked.rate,
        "seconds": asked.seconds,
        "requests": len(statuses),
        "errors": sum(status != 200 for status in statuses),  # noqa: PLR2004 - done
        "latency_ms": _percentiles(milliseconds) | {path: _percentiles(found) for path, found in of_paths.items()},
        "sent_late_ms": _percentiles(late_ms),
        "cpu_ms_per_request": round(1e3 * cpu_s / len(statuses), 3),
        "load_cpu_ms_per_request": round(1e3 * own_s / len(statuses), 3),
        "cores_that_others_kept_busy": round(others, 2),
        "memory_mb": [round(found, 1) for found in memory_mb],
        "exit_code": code,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
    text = json.dumps(report, indent=2)
    print(text)
    if asked.json is not None:
        asked.json.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
