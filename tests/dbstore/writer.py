"""A process that writes to a store, to be killed by test_local.py.

writer.py stream STORE FIRST LAST      write the points that are missing, print each, compact now and then
writer.py kills STORE NUMBER SEED      as often, be killed at a random moment of measuring and writing, and print what came of it
writer.py die ACTION TEMPLATE FOLDER   run ACTION on copies of a store, copy N killed at its Nth file operation; print how many
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import google_crc32c  # noqa: F401  (loaded before the forks, and so not counted)
import numcodecs.zstd  # noqa: F401  (as above)
import numpy as np

from dbstore import Record, Store

FILE_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir"}
SIGNATURE = "a0"


def record(environment: str, num_tokens: int) -> Record:
    """Return the record of one point."""
    return Record(SIGNATURE, environment, {"num_tokens": num_tokens}, np.arange(1, 50) * num_tokens)


def stream(path: str, first: int, last: int) -> None:
    """Write what is missing of the points from `first` to `last`, and compact after every tenth."""
    store = Store.open(path, "a")
    (environment,) = store.documents("environments")
    for num_tokens in range(first, last):
        if not store.has(SIGNATURE, environment, {"num_tokens": num_tokens}):
            store.write(record(environment, num_tokens))
            print(num_tokens, flush=True)  # noqa: T201  (read by the test)
        if num_tokens % 10 == 0:
            store.compact(SIGNATURE, environment)


def kills(path: str, number: int, seed: int) -> None:
    """Kill a process that measures and writes point after point, again and again, and print a line of JSON for each kill.

    A line holds the points whose writing had begun, and those whose writing had ended; each process goes on where the store ends.
    """
    rng = random.Random(seed)  # noqa: S311 - moments to kill at
    for _ in range(number):
        begun, ended = (os.pipe() for _ in range(2))
        pid = os.fork()
        if pid == 0:
            measure(path, begun[1], ended[1])
        time.sleep(rng.uniform(0.002, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = []
        for reader, writer in (begun, ended):
            os.close(writer)
            with os.fdopen(reader) as lines:
                found.append([int(line) for line in lines.read().split()])
        print(json.dumps(found), flush=True)  # noqa: T201  (read by the test)


def measure(path: str, begun: int, ended: int) -> None:
    """Measure what the store lacks, as a profile does, compact now and then, and tell both pipes; ends when killed."""
    store = Store.open(path, "a")
    (environment,) = store.documents("environments")
    for num_tokens in itertools.count():
        if not store.has(SIGNATURE, environment, {"num_tokens": num_tokens}):
            os.write(begun, b"%d\n" % num_tokens)
            store.write(record(environment, num_tokens))
            os.write(ended, b"%d\n" % num_tokens)
        if num_tokens % 20 == 19:
            store.compact(SIGNATURE, environment)


def act(action: str, path: Path) -> None:
    """Create a store, write one record, or compact, as `action` says."""
    store = Store.open(path, "a")
    if action == "create":
        return
    (environment,) = store.documents("environments")
    if action == "write":
        store.write(record(environment, 100))
    else:
        store.compact(SIGNATURE, environment)


def kill_at(number: int) -> None:
    """Have this process killed at its file operation of that number."""
    counter = itertools.count(1)

    def count(event: str, _: object) -> None:
        if event in FILE_OPERATIONS and next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def die(action: str, template: Path, folder: Path) -> int:
    """Return the number of copies, the last of which was not killed."""
    for number in itertools.count(1):
        shutil.copytree(template, folder / str(number))
        pid = os.fork()
        if pid == 0:
            kill_at(number)
            act(action, folder / str(number))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            return number if status == 0 else sys.exit("the action failed")
    raise AssertionError


if __name__ == "__main__":
    if sys.argv[1] == "stream":
        stream(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1] == "kills":
        kills(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(die(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))  # noqa: T201  (read by the test)
