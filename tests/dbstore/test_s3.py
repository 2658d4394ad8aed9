"""A store in an object store: a server that speaks S3, on this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest

from dbstore import Record, Store
from dbstore._remote import RemoteFiles
from dbstore.testing import FilesContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbstore import Environment, Files

pytest.importorskip("s3fs", reason="s3fs is not installed; it comes with the test extra")
if importlib.util.find_spec("moto") is None:
    pytest.skip("moto is not installed; it comes with the test extra", allow_module_level=True)

SERVER = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
"""
"""In a process of its own: no engine starts beside the web server's modules, whose names vLLM cannot look into."""
WRITER = Path(__file__).with_name("writer.py")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket on a server of its own; this process and those that it starts find it by the environment."""
    running = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert running.stdout is not None
    host, port = running.stdout.readline().split()
    settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    settings["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("latencies")
        yield "s3://latencies"
    running.communicate()


class TestS3Files(FilesContract):
    """The contract of a store's bytes, in a bucket."""

    @pytest.fixture
    def files(self, bucket: str) -> RemoteFiles:
        """Return a backend over a URL of its own."""
        return RemoteFiles(f"{bucket}/{uuid.uuid4().hex}/store")

    def raw_read(self, files: Files, path: str) -> bytes | None:
        """Read the object past the backend."""
        fs, full = fsspec.url_to_fs(files.locate(path))
        fs.invalidate_cache()
        return bytes(fs.cat_file(full)) if fs.isfile(full) else None

    def raw_write(self, files: Files, path: str, content: bytes) -> None:
        """Write the object past the backend."""
        fs, full = fsspec.url_to_fs(files.locate(path))
        fs.pipe_file(full, content)


@pytest.fixture
def url(bucket: str, environment: Environment) -> str:
    """The URL of a store that knows the environment."""
    place = f"{bucket}/{uuid.uuid4().hex}"
    Store.open(place, "a").write_document("environments", environment.digest, environment.to_json())
    return place


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a writer process."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, str(WRITER), *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environ)


def test_two_machines_write_one_bucket(url: str, environment: Environment) -> None:
    """Two processes write overlapping points and compact beside each other; all points are there once, and nothing is wrong."""
    with start("stream", url, 0, 12) as first, start("stream", url, 6, 18) as second:
        assert (first.wait(), second.wait()) == (0, 0)
    records = Store.open(url).read("a0", environment.digest)
    assert sorted(int(record.point["num_tokens"]) for record in records) == list(range(18))
    assert Store.open(url).verify() == ()


def test_a_killed_writer_loses_the_point_in_flight_only(url: str, environment: Environment) -> None:
    """What it had told of is there; what it left is no record, and the next writer finishes."""
    with start("stream", url, 0, 1000) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(7)]
        writer.kill()
        told += [int(line) for line in writer.stdout.read().splitlines()]
    found = {int(point["num_tokens"]) for point in Store.open(url).points("a0", environment.digest)}
    assert set(told) <= found
    assert len(found - set(told)) <= 1
    assert all("belongs to no record" in problem.message for problem in Store.open(url).verify())
    with start("stream", url, 0, 12) as writer:
        assert writer.wait() == 0
    assert {int(point["num_tokens"]) for point in Store.open(url).points("a0", environment.digest)} >= set(range(12))


def test_a_bucket_and_a_folder_merge(url: str, tmp_path: Path, make_record: Callable[..., Record]) -> None:
    """Records go from a folder into a bucket and back, each once."""
    folder = Store.open(tmp_path / "store", "a")
    remote = Store.open(url, "a")
    remote.write(make_record(1))
    assert [folder.merge(remote), folder.merge(remote)] == [1, 0]
    folder.write(make_record(2))
    assert [remote.merge(folder), remote.merge(folder), folder.merge(remote)] == [1, 0, 0]
    assert remote.read(*make_record(1).key) == folder.read(*make_record(1).key) == (make_record(1), make_record(2))


def test_no_bucket_is_one_line(bucket: str) -> None:
    """A bucket that is not there is no store."""
    with pytest.raises(FileNotFoundError, match="holds no latency store") as caught:
        Store.open(f"{bucket}-none/store")
    assert "\n" not in str(caught.value)
