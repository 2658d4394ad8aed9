"""The suite that every backend of a store passes; needs pytest.

Subclass `FilesContract` in a test module, and say where the backend's bytes lie:

    class TestMyFiles(FilesContract):
        @pytest.fixture
        def files(self, tmp_path):
            return MyFiles(tmp_path)

        def raw_read(self, files, path):
            ...

Raw access goes past the methods under test, so that what they write is there for others to read.
"""

from __future__ import annotations

import numpy as np
import pytest

from dbstore._environment import Environment
from dbstore._errors import StoreError
from dbstore._files import GROUP, Files
from dbstore._record import Record
from dbstore._store import Store

_ROOT, _PARENT, _OWN = (f'{{"attributes": {{"of": "{name}"}}}}'.encode() for name in ("root", "parent", "own"))
_CHUNK = bytes(range(256))


def _group(path: str) -> dict[str, bytes]:
    """Return the files of a group and its parents, as a store places them."""
    parts = path.split("/")
    parents = {"/".join([*parts[:depth], GROUP]): _PARENT if depth else _ROOT for depth in range(len(parts))}
    return {**parents, f"{path}/{GROUP}": _OWN, f"{path}/samples_ns/c/0": _CHUNK}


class FilesContract:
    """What every `Files` does; subclasses give the fixture `files` and raw access."""

    @pytest.fixture
    def files(self) -> Files:
        """Return a backend over a fresh, empty place."""
        raise NotImplementedError

    def raw_read(self, files: Files, path: str) -> bytes | None:
        """Return the content of a file, None without one, by other means than `files`."""
        raise NotImplementedError

    def raw_write(self, files: Files, path: str, content: bytes) -> None:
        """Write a file, its folders included, by other means than `files`."""
        raise NotImplementedError

    def leave_aside(self, files: Files) -> str:
        """Leave a file that a killed writer would, and return its path; asked of backends that can sweep."""
        raise NotImplementedError

    @pytest.fixture
    def placed(self, files: Files) -> Files:
        """Return the backend with a root and two groups, `records/a/x` and `records/b/y`."""
        files.write_root(_ROOT)
        for path in ("records/b/y", "records/a/x"):
            files.place(path, _group(path))
        return files

    def test_an_empty_place_holds_nothing(self, files: Files) -> None:
        """Where nothing was written there is no file, no group, and nothing to remove."""
        assert files.read([GROUP, "records/a/x/zarr.json"]) == {}
        assert files.children("records") == ()
        assert list(files.walk()) == []
        files.remove("records/a/x")

    def test_the_root_is_written_and_replaced(self, files: Files) -> None:
        """The root's group file is the one that was written last."""
        for content in (_ROOT, _OWN):
            files.write_root(content)
            assert self.raw_read(files, GROUP) == content

    def test_a_group_is_placed_whole(self, placed: Files) -> None:
        """Others find every file of a group, and the group files of its parents."""
        for path, content in (_group("records/a/x") | _group("records/b/y")).items():
            assert self.raw_read(placed, path) == content

    def test_what_exists_is_read(self, placed: Files) -> None:
        """Of the files asked for, those that exist come with their content, those that others wrote included."""
        self.raw_write(placed, "records/a/x/more", b"more")
        paths = ["records/a/x/samples_ns/c/0", "records/a/x/more", "records/a/x/none", "records/none/zarr.json"]
        assert placed.read(iter(paths)) == {paths[0]: _CHUNK, paths[1]: b"more"}
        assert placed.read([]) == {}

    def test_a_group_is_never_overwritten(self, placed: Files) -> None:
        """A group that exists stays as it is."""
        placed.place("records/a/x", _group("records/a/x") | {"records/a/x/samples_ns/c/0": b"other", "records/a/x/more": b""})
        assert self.raw_read(placed, "records/a/x/samples_ns/c/0") == _CHUNK
        assert self.raw_read(placed, "records/a/x/more") is None

    def test_groups_are_listed_in_order(self, placed: Files) -> None:
        """A folder's groups come by name; a folder without a group file is none, whatever a killed writer left in it."""
        placed.place("records/a/w", _group("records/a/w"))
        self.raw_write(placed, "records/c/z/samples_ns/c/0", _CHUNK)
        assert placed.children("records") == ("a", "b")
        assert placed.children("records/a") == ("w", "x")
        assert placed.children("records/none") == ()

    def test_a_group_is_removed_whole(self, placed: Files) -> None:
        """Nothing of it is left, the others stay, and once more does no harm."""
        for _ in range(2):
            placed.remove("records/a/x")
            assert [self.raw_read(placed, f"records/a/x/{name}") for name in (GROUP, "samples_ns/c/0")] == [None, None]
            assert placed.children("records/a") == ()
            assert placed.children("records/b") == ("y",)

    def test_a_group_comes_back(self, placed: Files) -> None:
        """What was removed can be placed again."""
        placed.remove("records/a/x")
        placed.place("records/a/x", _group("records/a/x"))
        assert placed.children("records/a") == ("x",)
        assert self.raw_read(placed, "records/a/x/samples_ns/c/0") == _CHUNK

    def test_every_file_is_walked(self, placed: Files) -> None:
        """Path and size of each file come, those of strangers included."""
        self.raw_write(placed, "stranger", b"12345")
        expected = {GROUP: _ROOT, **_group("records/a/x"), **_group("records/b/y"), "stranger": b"12345"}
        assert sorted(placed.walk()) == sorted((path, len(content)) for path, content in expected.items())

    def test_places_are_told(self, files: Files) -> None:
        """Messages show where a file lies: below the root, a place of its own."""
        assert files.locate("records/a").startswith(files.locate(""))
        assert files.locate("records/a").endswith("records/a")

    def test_leftovers_are_swept_or_the_backend_says_that_it_cannot(self, placed: Files) -> None:
        """A backend that can sweep hides what a killed writer left, and removes it; another one refuses to, in one line."""
        before = sorted(placed.walk())
        if placed.can_sweep:
            aside = self.leave_aside(placed)
            assert sorted(placed.walk()) == before
            placed.sweep()
            assert self.raw_read(placed, aside) is None
        else:
            with pytest.raises(StoreError) as caught:
                placed.sweep()
            assert "\n" not in str(caught.value)
        assert sorted(placed.walk()) == before

    def test_a_store_works_on_it(self, files: Files) -> None:
        """Records that one store writes and compacts another one reads, and nothing is wrong with what lies there."""
        environment = Environment(
            device="d",
            device_kind="cpu",
            driver="1",
            torch_version="1",
            engine="e",
            engine_version="1",
            attention_backend="a",
            dtype="bfloat16",
            kv_cache_dtype="auto",
            block_size=16,
            execution_mode="eager",
            quantization=None,
            num_threads=1,
        )
        store = Store.open(files, "a")
        store.write_document("environments", environment.digest, environment.to_json())
        records = [Record("s", environment.digest, {"d0": size}, np.arange(1, 9) * size) for size in (1, 2, 3)]
        store.write(*records[:2])
        store.write(records[2])
        store.compact("s", environment.digest)
        again = Store.open(files)
        assert set(again.read("s", environment.digest)) == set(records)
        assert again.verify() == ()
