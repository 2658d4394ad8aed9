"""The backend in a folder, and local stores under kill -9 and concurrent writers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dbstore import Environment, Files, Record, Store
from dbstore._files import GROUP
from dbstore._local import LocalFiles
from dbstore.testing import FilesContract

if TYPE_CHECKING:
    from collections.abc import Callable


class TestLocalFiles(FilesContract):
    """The contract in a folder."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> LocalFiles:
        """Return a backend over a folder that is not there yet."""
        return LocalFiles(str(tmp_path / "files"))

    def raw_read(self, files: Files, path: str) -> bytes | None:
        """Read the file by its path."""
        file = Path(files.locate(path))
        return file.read_bytes() if file.is_file() else None

    def raw_write(self, files: Files, path: str, content: bytes) -> None:
        """Write the file by its path."""
        file = Path(files.locate(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def leave_aside(self, files: Files) -> str:
        """Leave a group of a writer that is gone for long."""
        path = f".partial/other.host.1.0/{GROUP}"
        self.raw_write(files, path, b"{}")
        os.utime(Path(files.locate(path)).parent, (0, 0))
        return path


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
    root = str(Path(__file__).parents[2])
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, str(WRITER), *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environ)


def stored(path: Path, environment: Environment) -> set[int]:
    """Return the stored points."""
    return {point["num_tokens"] for point in Store.open(path).points(SIGNATURE, environment.digest)}


def test_killed_while_writing_many(path: Path, environment: Environment) -> None:
    """Killed again and again, a writer loses at most the point in flight, and a rerun writes only what is missing."""
    printed: list[int] = []
    for num_lines in (1, 7, 13):
        with start("stream", path, 0, 100_000) as writer:
            assert writer.stdout is not None
            printed += [int(writer.stdout.readline()) for _ in range(num_lines)]
            writer.kill()
            printed += [int(line) for line in writer.stdout.read().splitlines()]
        assert Store.open(path).verify() == ()
        assert set(printed) <= stored(path, environment)
        assert len(stored(path, environment) - set(printed)) <= len((1, 7, 13))
    assert len(printed) == len(set(printed))
    assert len(Store.open(path).read(SIGNATURE, environment.digest)) == len(stored(path, environment))


@pytest.mark.parametrize("action", ["write", "compact"])
def test_killed_at_every_file_operation(
    path: Path, tmp_path: Path, environment: Environment, make_record: Callable[..., Record], action: str
) -> None:
    """Whichever file operation is the last, nothing written before is lost, damaged or doubled, and a rerun completes it."""
    before = {make_record(num_tokens) for num_tokens in (1, 2)}
    for record in before:
        Store.open(path, "a").write(record)
    (tmp_path / "copies").mkdir()
    with start("die", action, path, tmp_path / "copies") as writer:
        assert writer.stdout is not None
        num_copies = int(writer.stdout.read())
    assert num_copies > 15
    abandoned = 0
    for copy in (tmp_path / "copies" / str(number) for number in range(1, num_copies + 1)):
        assert Store.open(copy).verify() == ()
        found = Store.open(copy).read(SIGNATURE, environment.digest)
        assert before <= set(found)
        assert len(found) <= len(before) + (action == "write")
        abandoned += (copy / ".partial").exists()
        Store.open(copy, "a").compact(SIGNATURE, environment.digest)
        assert Store.open(copy).read(SIGNATURE, environment.digest) == found
        assert not (copy / ".partial").exists()
    assert abandoned > 5


def test_killed_while_creating(tmp_path: Path) -> None:
    """Whichever file operation of making a store is the last, the next writer makes it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "copies").mkdir()
    with start("die", "create", tmp_path / "empty", tmp_path / "copies") as writer:
        assert writer.stdout is not None
        num_copies = int(writer.stdout.read())
    assert num_copies > 5
    for number in range(1, num_copies + 1):
        copy = tmp_path / "copies" / str(number)
        assert Store.open(copy, "a").verify() == ()
        assert [entry.name for entry in copy.iterdir()] == ["zarr.json"]


def test_writers_beside_each_other_and_a_compaction(path: Path, environment: Environment) -> None:
    """Two processes write overlapping points and compact, and this one compacts and verifies; all points are there once."""
    with start("stream", path, 0, 60) as first, start("stream", path, 30, 90) as second:
        while first.poll() is None or second.poll() is None:
            if stored(path, environment):
                Store.open(path, "a").compact(SIGNATURE, environment.digest)
            assert Store.open(path).verify() == ()
        assert (first.returncode, second.returncode) == (0, 0)
    assert stored(path, environment) == set(range(90))
    assert sorted(record.point["num_tokens"] for record in Store.open(path).read(SIGNATURE, environment.digest)) == list(
        range(90)
    )


def test_only_abandoned_temporaries_are_swept(path: Path) -> None:
    """A temporary goes if its process is gone or it is older than an hour; a running writer's stays."""
    with start("stream", path, 0, 0) as writer:
        writer.wait()
    names = {
        "dead": f"{platform.node()}.{writer.pid}.0",
        "alive": f"{platform.node()}.{os.getpid()}.1",
        "old": f"{platform.node()}.{os.getpid()}.2",
        "elsewhere": f"other.host.{writer.pid}.3",
        "old elsewhere": "other.host.1.4",
    }
    for what, name in names.items():
        (path / ".partial" / name / "samples_ns").mkdir(parents=True)
        if what.startswith("old"):
            os.utime(path / ".partial" / name, (0, 0))
    Store.open(path)
    assert len(list((path / ".partial").iterdir())) == 5
    store = Store.open(path, "a")
    assert {entry.name for entry in (path / ".partial").iterdir()} == {names["alive"], names["elsewhere"]}
    assert store.verify() == ()


def test_write_error_is_not_retried(path: Path) -> None:
    """What no retry can mend, such as a name in the way, is reported as the system says it."""
    (path / ".partial").write_text("in the way")
    with pytest.raises(NotADirectoryError):
        Store.open(path, "a").write_document("traces", "t0", {})
