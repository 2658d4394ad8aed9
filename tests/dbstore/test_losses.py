"""Nothing that was written is lost: kills at random moments, many writers, a full disk, no access, clocks that jump."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dbstore import Environment, Record, Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRITER = Path(__file__).with_name("writer.py")
SIGNATURE = "a0"


@pytest.fixture
def path(tmp_path: Path, environment: Environment) -> Path:
    """Return a store that knows the environment."""
    store = Store.open(tmp_path / "store", "a")
    store.write_document("environments", environment.digest, environment.to_json())
    return tmp_path / "store"


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a writer process."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, str(WRITER), *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environ)


def in_child(action: Callable[[], None]) -> str:
    """Run an action in a forked process, and return the message of the store's error that ends it; empty without one."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            action()
        except StoreError as error:
            os.write(writer, str(error).encode())
        except BaseException as error:  # noqa: BLE001 - told to the parent, which expects none
            os.write(writer, f"unexpected {error!r}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        message = told.read()
    os.waitpid(pid, 0)
    return message


def test_fifty_kills_at_random_moments(path: Path, environment: Environment) -> None:
    """Every record whose writing had ended is there, bit for bit; of what had begun, a kill costs one point at most."""
    with start("kills", path, 50, 0) as writer:
        assert writer.stdout is not None
        kills = [json.loads(line) for line in writer.stdout]
    assert len(kills) == 50
    assert Store.open(path).verify() == ()
    found = {int(record.point["num_tokens"]): record for record in Store.open(path).read(SIGNATURE, environment.digest)}
    measured_before: set[int] = set()
    for begun, ended in kills:
        assert len(set(begun) & measured_before) <= 1
        assert len(set(begun) - set(ended)) <= 1
        assert set(ended) <= found.keys()
        measured_before |= set(begun)
    assert len(found) > 10
    for num_tokens, record in found.items():
        assert record == Record(SIGNATURE, environment.digest, {"num_tokens": num_tokens}, np.arange(1, 50) * num_tokens)


def test_four_writers_of_a_hundred_records_each(path: Path, environment: Environment) -> None:
    """Four processes at once write a hundred records each, and compact: four hundred are there."""
    writers = [start("stream", path, first, first + 100) for first in range(0, 400, 100)]
    for writer in writers:
        with writer:
            writer.communicate()
        assert writer.returncode == 0
    records = Store.open(path).read(SIGNATURE, environment.digest)
    assert sorted(int(record.point["num_tokens"]) for record in records) == list(range(400))
    assert Store.open(path).verify() == ()


def test_a_disk_without_room(path: Path, environment: Environment, make_record: Callable[..., Record]) -> None:
    """Where a file may not grow, writing fails in one line with a next step; what was there stays, and nothing is left over."""
    Store.open(path, "a").write(make_record(1))
    large = np.random.default_rng(0).integers(1, 2**62, 50_000)

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        Store.open(path, "a").write(make_record(2, samples_ns=large))

    message = in_child(write)
    assert message.startswith(f"{path}: cannot be changed (File too large); free some space")
    assert "\n" not in message
    assert not (path / ".partial").exists()
    assert Store.open(path).verify() == ()
    assert Store.open(path).read(SIGNATURE, environment.digest) == (make_record(1),)


@contextmanager
def open_to_all() -> Iterator[Path]:
    """Give a folder that any user may enter, which those of the tests are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=True)  # noqa: S607 - wherever it lies
        shutil.rmtree(folder)


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_a_store_that_may_only_be_read(environment: Environment, make_record: Callable[..., Record]) -> None:
    """Whoever may not write reads all, and is told in one line when it tries to write; nothing changes."""
    with open_to_all() as folder:
        store = Store.open(folder / "store", "a")
        store.write_document("environments", environment.digest, environment.to_json())
        store.write(make_record(1))
        before = sorted(folder.rglob("*"))
        for place in (path for path in before if path.is_dir()):
            place.chmod(0o555)

        def as_another_user() -> None:
            if os.geteuid() == 0:  # who may write everywhere
                os.setuid(65534)
            assert Store.open(folder / "store").read(SIGNATURE, environment.digest) == (make_record(1),)
            Store.open(folder / "store", "a").write(make_record(2))

        message = in_child(as_another_user)
        assert message.startswith(f"{folder / 'store'}: cannot be changed (Permission denied); get leave to write there")
        assert "\n" not in message
        assert sorted(folder.rglob("*")) == before


def test_a_clock_that_jumps(path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose clock is a day ahead takes running writers' temporaries for old ones: these begin again, and lose nothing."""
    now = time.time
    monkeypatch.setattr("dbstore._local.time.time", lambda: now() + 86_400)
    swept = 0
    with start("stream", path, 0, 150) as writer:
        while writer.poll() is None:
            swept += (path / ".partial").exists()
            Store.open(path, "a")
            time.sleep(0.005)  # without a pause the writer could begin again for ever
    assert writer.returncode == 0
    assert swept
    records = Store.open(path).read(SIGNATURE, environment.digest)
    assert [int(record.point["num_tokens"]) for record in sorted(records, key=lambda r: r.point["num_tokens"])] == list(
        range(150)
    )
    assert Store.open(path).verify() == ()
