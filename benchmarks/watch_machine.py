"""Watch a machine while something else is measured on it: how fast its host computes, and how its GPU is clocked.

    python benchmarks/watch_machine.py FILE [--interval 0.1]

Writes a line after each interval, as long as the process lives that started it: the monotonic clock in nanoseconds, which is
`perf_counter_ns` of other processes too; what a fixed loop of Python took, in nanoseconds; processor time that other guests of
the machine's host took, in hundredths of a second since its start; and of the first GPU the clock of its multiprocessors in MHz,
its power in milliwatts, and the bits of what throttles it.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

SPINS = 20_000
"""Turns of the loop: about a millisecond."""


def spin_ns() -> int:
    """Return what a fixed loop takes now."""
    begin = time.perf_counter_ns()
    total = 0
    for number in range(SPINS):
        total += number
    return time.perf_counter_ns() - begin


def main() -> None:
    """Write a line after each interval, until the parent is gone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--interval", type=float, default=0.1)
    args = parser.parse_args()
    gpu, parent = None, os.getppid()
    with suppress(ModuleNotFoundError):
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    with args.file.open("a", buffering=1) as file:
        while os.getppid() == parent:
            row = [time.perf_counter_ns(), spin_ns(), round(100 * psutil.cpu_times().steal)]
            if gpu is not None:
                row += [
                    pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
                    pynvml.nvmlDeviceGetPowerUsage(gpu),
                    pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
                ]
            file.write(" ".join(map(str, row)) + "\n")
            time.sleep(args.interval)


if __name__ == "__main__":
    main()
