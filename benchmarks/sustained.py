"""Run products, attention and copies without a pause, and with pauses: what a device's clocks leave of a short burst's speed.

    python benchmarks/sustained.py --json FILE [--device cuda] [--seconds 2]

Tables of latencies are made of short bursts, and a device that is held to a power runs slower when it works on. Each kind of work
runs from idle for `--seconds`, its products on random data, and then in turns of work and pause. Kept are, of every stretch of a
few milliseconds, when it began and how long one call took, and beside it the clocks and the power that NVML tells every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it

if TYPE_CHECKING:
    from collections.abc import Callable

STRETCH_NS = 2_000_000
"""How long a stretch of calls shall take."""
IDLE_S = 1.0
"""Pause before each kind of work, in which clocks and power settle."""
TURNS_S = (0.005, 0.02, 0.1)
"""Lengths of work and of the pause behind it."""
TOKENS, WIDTH, INNER = 2048, 4096, 28672
"""Sizes of Llama 3.1 8B's widest product, of a step full of prompts."""


def products(dtype: torch.dtype, tokens: int, device: str, scale: int) -> Callable[[], object]:
    """Return one product of `tokens` rows over weights that change from call to call, as a model's layers do."""
    inner = INNER // scale
    activations = torch.randn(tokens, WIDTH, device=device).to(torch.bfloat16)
    weights = [torch.randn(inner, WIDTH, device=device).to(torch.bfloat16) for _ in range(4)]
    state = {"call": 0}
    if dtype == torch.bfloat16:

        def call() -> object:
            state["call"] += 1
            return F.linear(activations, weights[state["call"] % 4])

        return call
    quantised = [w.to(dtype) for w in weights]
    rows = torch.ones(tokens, 1, device=device)
    columns = torch.ones(1, inner, device=device)
    activations = activations.to(dtype)

    def scaled() -> object:
        state["call"] += 1
        weight = quantised[state["call"] % 4].t()
        return torch._scaled_mm(activations, weight, rows, columns, out_dtype=torch.bfloat16)  # noqa: SLF001 - its only name

    return scaled


def kinds(device: str) -> dict[str, Callable[[], object]]:
    """Return each kind of work as a call."""
    scale = 1 if device == "cuda" else 16
    tokens = TOKENS // scale
    query = torch.randn(1, 32, tokens, 128, device=device).to(torch.bfloat16)
    key, value = (torch.randn(1, 8, tokens, 128, device=device).to(torch.bfloat16) for _ in range(2))
    source = torch.randn((1 << 28) // scale**2, device=device)
    target = torch.empty_like(source)
    found: dict[str, Callable[[], object]] = {
        "products bf16": products(torch.bfloat16, tokens, device, scale),
        "products bf16, 16 tokens": products(torch.bfloat16, 16, device, scale),
        "attention": lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True),
        "copy": lambda: target.copy_(source),
    }
    if device == "cuda":
        found["products fp8"] = products(torch.float8_e4m3fn, tokens, device, scale)
    return found


class Clock:
    """Times stretches of calls, on the device's own clock where it has one."""

    def __init__(self, device: str) -> None:
        self.is_cuda = device == "cuda"
        self.origin = self.mark()
        self.wait()

    def mark(self) -> torch.cuda.Event | int:
        """Return this moment of the device's work."""
        if not self.is_cuda:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def since_ns(self, begin: torch.cuda.Event | int, end: torch.cuda.Event | int) -> int:
        """Return the time between two moments that lie behind."""
        if isinstance(begin, int) or isinstance(end, int):
            return int(end) - int(begin)  # type: ignore[arg-type]
        return round(1e6 * begin.elapsed_time(end))


def stretches(call: Callable[[], object], calls: int, seconds: float, pause_s: float, clock: Clock) -> list[list[int]]:
    """Run stretches of so many calls behind each other, or with a pause after each; return begin and nanoseconds a call."""
    marks = []
    until = time.perf_counter() + seconds
    while not marks or time.perf_counter() < until:
        begin = clock.mark()
        for _ in range(calls):
            call()
        marks.append((begin, clock.mark()))
        if pause_s:
            clock.wait()
            time.sleep(pause_s)
        elif len(marks) > 2:  # noqa: PLR2004 - the host stays two stretches ahead
            marks[-3][1].synchronize() if clock.is_cuda else None
    clock.wait()
    return [[clock.since_ns(clock.origin, begin), round(clock.since_ns(begin, end) / calls)] for begin, end in marks]


def watch(rows: list[list[int]], stop: threading.Event) -> None:
    """Keep the clocks and the power of the first GPU every 20 ms, if NVML is there."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:  # no driver, or no GPU
        return
    while not stop.wait(0.02):
        rows.append(
            [
                time.perf_counter_ns(),
                pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
                pynvml.nvmlDeviceGetPowerUsage(handle),
                pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
                pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            ]
        )


def main() -> None:
    """Run every kind of work, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows: list[list[int]] = []
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(rows, stop), daemon=True)
    watcher.start()
    clock = Clock(args.device)
    origin_ns = time.perf_counter_ns()
    found: dict[str, object] = {}
    for name, call in kinds(args.device).items():
        for _ in range(3):
            call()
        [[_, each_ns]] = stretches(call, 3, 1e-9, 0.0, clock)
        calls = max(1, STRETCH_NS // each_ns)
        time.sleep(IDLE_S)
        found[name] = {"calls": calls, "on": stretches(call, calls, args.seconds, 0.0, clock)}
        print(name, shown(found[name]["on"]), flush=True)  # type: ignore[index]
        if name.startswith("products") and "tokens" not in name:
            for turn_s in TURNS_S:
                time.sleep(IDLE_S / 2)
                many = max(1, round(1e9 * turn_s / each_ns))
                found[f"{name}, {1e3 * turn_s:g} ms in turns"] = {
                    "calls": many,
                    "on": stretches(call, many, args.seconds / 2, turn_s, clock),
                }
    stop.set()
    watcher.join()
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    document = {"device": device, "torch": torch.__version__, "origin_ns": origin_ns, "kinds": found, "clocks": rows}
    args.json.write_text(json.dumps(document, separators=(",", ":")) + "\n")


def shown(rows: list[list[int]]) -> str:
    """Return the first stretches' time and the last ones' in short."""
    first, last = sorted(r[1] for r in rows[:5]), sorted(r[1] for r in rows[-50:])
    return f"{first[len(first) // 2]} ns at first, {last[len(last) // 2]} ns at last, {len(rows)} stretches"


if __name__ == "__main__":
    main()
