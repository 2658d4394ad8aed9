"""The store contract, on a local path and on an fsspec URL."""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import fsspec
import numpy as np
import pytest
import zarr

from dbstore import (
    DamagedRecordError,
    Environment,
    InvalidRecordError,
    JsonObject,
    Record,
    RecordNotFoundError,
    SchemaVersionError,
    Store,
    StoreError,
    StoreNotFoundError,
)

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., Record]


class StoreContract:
    """What every store does. Subclasses say where; raw access goes past the store, through fsspec."""

    protocol: ClassVar[str]

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return a fresh place."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, url: str, environment: Environment) -> Store:
        """Return a new writable store that knows the environment."""
        store = Store.open(url, "a")
        store.write_document("environments", environment.digest, environment.to_json())
        return store

    def raw(self, url: str) -> dict[str, tuple[Any, str]]:
        """Return the file system and full path of every file, by path below the root."""
        fs, root = fsspec.url_to_fs(url)
        return {path[len(root) :].strip("/"): (fs, path) for path in fs.find(root)}

    def label(self, url: str, version: int) -> None:
        """Make a store one of another schema version."""
        fs, path = self.raw(url)["zarr.json"]
        document = json.loads(fs.cat_file(path))
        document["attributes"]["dbstore"]["schema_version"] = version
        fs.pipe_file(path, json.dumps(document).encode())

    def alter(self, url: str, ending: str, change: Callable[[bytes], bytes]) -> str:
        """Change the one file of that ending, and return its path below the root."""
        (name,) = [path for path in self.raw(url) if path.endswith(ending)]
        fs, path = self.raw(url)[name]
        fs.pipe_file(path, change(fs.cat_file(path)))
        return name

    def test_read_returns_what_was_written(self, store: Store, url: str, make_record: Make) -> None:
        """Another handle reads all records of a key, ordered by point."""
        records = [make_record(num_tokens) for num_tokens in (5, 1, 3)]
        for record in records:
            store.write(record)
        assert Store.open(url).read(*records[0].key) == (records[1], records[2], records[0])

    def test_write_is_idempotent(self, store: Store, url: str, make_record: Make) -> None:
        """The same record twice is one record, and no file changes."""
        store.write(make_record(1))
        before = self.raw(url).keys()
        store.write(make_record(1))
        assert self.raw(url).keys() == before
        assert len(store.read(*make_record(1).key)) == 1

    def test_second_measurement_of_a_point_is_kept(self, store: Store, make_record: Make) -> None:
        """Two measurements of one point are two records at one point."""
        first, second = make_record(1, samples_ns=[1]), make_record(1, samples_ns=[2])
        store.write(first, second)
        assert set(store.read(*first.key)) == {first, second}
        assert store.points(*first.key) == (JsonObject({"num_tokens": 1}),)

    def test_points_and_has(self, store: Store, make_record: Make) -> None:
        """Points tell what is done, infeasible ones included; an unknown key has none."""
        done = make_record(1, point={"batch": [[1, 1000], [512, 0]]})
        store.write(done, make_record(2, samples_ns=[], infeasible="out of memory"))
        assert store.has(*done.key, {"batch": [(1, 1000), (512, 0)]})
        assert store.has(*done.key, {"num_tokens": 2})
        assert not store.has(*done.key, {"num_tokens": 3})
        assert len(set(store.points(*done.key))) == 2
        assert store.points("unknown", done.environment) == ()

    def test_a_fingerprint_changes_with_what_is_measured(self, store: Store, url: str, make_record: Make) -> None:
        """Each record and each trace changes it, whoever looks; what is written again, or follows from the records, does not."""
        seen = [store.fingerprint()]
        store.write(make_record(1))
        seen.append(store.fingerprint())
        store.write(make_record(1, samples_ns=[2]))
        seen.append(store.fingerprint())
        store.write_document("traces", "t0", {"model": "some"})
        seen.append(store.fingerprint())
        assert len(set(seen)) == 4
        store.write(make_record(1))
        store.write_document("regressors", "r0", {"trees": 1})
        assert Store.open(url).fingerprint() == seen[-1]

    def test_compact_keeps_records_in_one_group(self, store: Store, url: str, make_record: Make) -> None:
        """After compaction the same records lie in one group, and writing goes on."""
        records = [make_record(num_tokens) for num_tokens in range(6)]
        for record in records:
            store.write(record)
        before = store.read(*records[0].key)
        store.compact(*records[0].key)
        assert store.read(*records[0].key) == before
        assert sum(path.endswith("samples_ns/zarr.json") for path in self.raw(url)) == 1
        store.write(make_record(7))
        assert len(store.read(*records[0].key)) == 7
        assert store.verify() == ()

    def test_folded_record_seen_twice_counts_once(self, store: Store, make_record: Make) -> None:
        """A record both alone and in a compacted group is read, and counted, once."""
        store.write(make_record(1), make_record(2))
        store.write(make_record(1))
        assert store.read(*make_record(1).key) == (make_record(1), make_record(2))
        assert store.info().num_records == 2
        store.compact(*make_record(1).key)
        assert store.read(*make_record(1).key) == (make_record(1), make_record(2))

    def test_keys(self, store: Store, make_record: Make, environment: Environment) -> None:
        """Keys are listed sorted."""
        store.write(make_record(1, "b1"), make_record(1, "a0"))
        assert list(store.keys()) == [("a0", environment.digest), ("b1", environment.digest)]

    def test_unknown_record(self, store: Store, environment: Environment) -> None:
        """Reading or compacting a key without records is one clean line, also a KeyError."""
        for action in (store.read, store.compact):
            with pytest.raises(RecordNotFoundError, match=r"no records of this key; measure it with `dooly profile") as caught:
                action("unknown", environment.digest)
            assert isinstance(caught.value, KeyError)
            assert not str(caught.value).startswith(("'", '"'))

    def test_record_needs_its_environment(self, store: Store) -> None:
        """A record of an environment that the store cannot describe is refused."""
        with pytest.raises(StoreError, match=r"lacks environment e0 .*; first write_document"):
            store.write(Record("a0", "e0", {}, np.array([1])))

    def test_documents(self, store: Store, environment: Environment) -> None:
        """Documents come back equal, are listed, and never change."""
        store.write_document("operations", "a0", {"nodes": [{"op": "mm"}]})
        store.write_document("operations", "a0", {"nodes": [{"op": "mm"}]})
        assert store.read_document("operations", "a0") == {"nodes": [{"op": "mm"}]}
        assert store.documents("operations") == ("a0",)
        assert store.documents("traces") == ()
        assert Environment.from_json(store.read_document("environments", environment.digest)) == environment
        with pytest.raises(StoreError, match="documents never change"):
            store.write_document("operations", "a0", {"nodes": []})
        with pytest.raises(RecordNotFoundError, match="not in the store"):
            store.read_document("traces", "t0")

    def test_invalid_documents(self, store: Store, environment: Environment) -> None:
        """A wrong kind, name or environment digest is refused."""
        with pytest.raises(InvalidRecordError, match="kind: must be one of"):
            store.write_document("models", "m0", {})  # type: ignore[arg-type]
        with pytest.raises(InvalidRecordError, match="document digest"):
            store.write_document("traces", "../t0", {})
        with pytest.raises(InvalidRecordError, match=environment.digest):
            store.write_document("environments", "e0", environment.to_json())

    def test_merge_copies_what_is_lacking(self, store: Store, url: str, make_record: Make) -> None:
        """Merging brings documents and missing records over, and a second time nothing."""
        other = Store.open(f"{url}-other", "a")
        store.write(make_record(1), make_record(2))
        store.write_document("traces", "t0", {"layers": [32]})
        assert other.merge(store) == 2
        store.write(make_record(3), make_record(1, "b1"))
        assert other.merge(store) == 2
        assert other.merge(store) == 0
        assert other.documents("traces") == ("t0",)
        assert list(other.keys()) == list(store.keys())
        assert [other.read(*key) for key in list(other.keys())] == [store.read(*key) for key in list(store.keys())]
        assert other.verify() == ()

    def test_merge_takes_traces_but_no_regressors(self, store: Store, url: str) -> None:
        """A trace that was made twice says when, so is twice another: the first stays. Regressors stay with their records."""
        other = Store.open(f"{url}-other", "a")
        store.write_document("traces", "t0", {"written_s": 1.0})
        other.write_document("traces", "t0", {"written_s": 2.0})
        other.write_document("regressors", "r0", {"weights": [1.0]})
        assert store.merge(other) == 0
        assert store.read_document("traces", "t0") == {"written_s": 1.0}
        assert store.documents("regressors") == ()
        store.write_document("operations", "o0", {"name": "a"})
        with pytest.raises(StoreError, match="holds another document"):
            store.write_document("operations", "o0", {"name": "b"})

    def test_versions_may_tell_more_or_less_of_an_operation(self, store: Store, url: str) -> None:
        """Two stores merge where one has a field beside what both have; what both have must be equal."""
        other = Store.open(f"{url}-other", "a")
        store.write_document("operations", "o0", {"nodes": [1, {"dim": "s0"}]})
        other.write_document("operations", "o0", {"nodes": [1, {"dim": "s0"}], "family": "f"})
        assert (store.merge(other), other.merge(store)) == (0, 0)
        assert store.read_document("operations", "o0") == {"nodes": [1, {"dim": "s0"}]}
        with pytest.raises(StoreError, match="holds another document"):
            other.write_document("operations", "o0", {"nodes": [1, {"dim": "s1"}]})

    def test_a_regressor_can_go(self, store: Store, url: str) -> None:
        """It follows from the records; another may be written in its place, and whoever reads may not remove it."""
        store.write_document("regressors", "r0", {"weights": [1.0]})
        store.write_document("regressors", "r1", {"weights": [2.0]})
        with pytest.raises(StoreError, match="open for reading"):
            Store.open(url).remove_regressor("r0")
        store.remove_regressor("r0")
        store.remove_regressor("r0")
        assert Store.open(url).documents("regressors") == ("r1",)
        store.write_document("regressors", "r0", {"weights": [3.0]})
        assert Store.open(url).read_document("regressors", "r0") == {"weights": [3.0]}
        assert store.verify() == ()

    def test_info(self, store: Store, url: str, make_record: Make, environment: Environment) -> None:
        """The survey counts keys, records, samples, bytes and seconds of measuring."""
        store.write(make_record(1), make_record(2, samples_ns=[], infeasible="oom"), make_record(1, "b1"))
        info = store.info()
        assert (info.num_operations, info.num_keys, info.num_records, info.num_infeasible) == (2, 2, 3, 1)
        assert (info.num_samples, info.measuring_s, info.environments) == (80, 1.5, (environment,))
        assert info.size_bytes == sum(fs.size(path) for fs, path in self.raw(url).values())

    def test_plain_zarr_reads_it(self, store: Store, url: str, make_record: Make) -> None:
        """Any Zarr tool walks the groups and reads samples and points."""
        records = (make_record(1), make_record(2))
        store.write(*records)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Zarr warns that it wraps the synchronous memory file system
            root = zarr.open_group(url, mode="r")
            paths = {path: node for path, node in root.members(max_depth=None) if path.endswith("samples_ns")}
        ((path, samples),) = paths.items()
        assert isinstance(samples, zarr.Array)
        assert np.asarray(samples[:]).tolist() == [*records[0].samples_ns, *records[1].samples_ns]
        attributes = json.loads(json.dumps(dict(root[path.rpartition("/")[0]].attrs)))
        assert attributes["offsets"] == [0, 40, 80]
        assert [entry["point"] for entry in attributes["records"]] == [{"num_tokens": 1}, {"num_tokens": 2}]

    def test_flipped_byte_in_a_chunk_is_named(self, store: Store, url: str, make_record: Make) -> None:
        """A damaged chunk is named by reading, by compacting and by verify; other keys stay readable."""
        store.write(make_record(1))
        name = self.alter(url, "samples_ns/c/0", lambda content: content[:9] + bytes([content[9] ^ 1]) + content[10:])
        store.write(make_record(2, "b1"))
        for action in (store.read, store.compact):
            with pytest.raises(
                DamagedRecordError, match=rf"{name}: chunk is damaged .*; remove .* and run `dooly profile` again$"
            ):
                action(*make_record(1).key)
        (problem,) = store.verify()
        assert name in problem.message
        assert name.startswith(problem.path.removeprefix(url).strip("/"))
        assert len(store.read(*make_record(2, "b1").key)) == 1

    def test_verify_lists_strays_and_altered_documents(self, store: Store, url: str, make_record: Make) -> None:
        """A file that belongs to nothing, a changed document and an undescribed environment are each listed."""
        store.write(make_record(1))
        store.write_document("traces", "t0", {"layers": 32})
        self.alter(url, "traces/t0/zarr.json", lambda content: content.replace(b"32", b"33"))
        fs, path = self.raw(url)["zarr.json"]
        fs.pipe_file(path.replace("zarr.json", "notes.txt"), b"hello")
        self.alter(url, f"environments/{make_record(1).environment}/zarr.json", lambda content: content.replace(b"auto", b"fp8"))
        messages = [problem.message for problem in store.verify()]
        assert len(messages) == 3
        assert sum("differs from its digest" in message for message in messages) == 2
        assert sum("notes.txt: belongs to no record" in message for message in messages) == 1

    def test_record_without_environment_is_listed(self, store: Store, url: str, make_record: Make) -> None:
        """Records whose environment was deleted are listed."""
        store.write(make_record(1))
        fs, path = self.raw(url)[f"environments/{make_record(1).environment}/zarr.json"]
        fs.rm(path.removesuffix("/zarr.json"), recursive=True)
        (problem,) = store.verify()
        assert "environment is not described" in problem.message

    def test_group_without_its_file_is_ignored_and_listed(self, store: Store, url: str, make_record: Make) -> None:
        """A group that was not finished is no record to readers, and its files are listed."""
        store.write(make_record(1))
        group = next(path for path in self.raw(url) if path.endswith("samples_ns/c/0")).removesuffix("/samples_ns/c/0")
        fs, path = self.raw(url)[f"{group}/zarr.json"]
        fs.rm_file(path)
        assert store.points(*make_record(1).key) == ()
        assert len(store.verify()) == 2

    def test_missing_store(self, url: str) -> None:
        """A missing store is one line that names the place and the command that makes one."""
        with pytest.raises(
            StoreNotFoundError, match=r"holds no latency store; make one with `dooly profile MODEL --db "
        ) as caught:
            Store.open(url)
        assert "\n" not in str(caught.value)
        assert url.removeprefix("file://") in str(caught.value)

    def test_newer_schema_is_refused(self, store: Store, url: str) -> None:
        """A store of a later layout is refused with both versions and advice, in either mode."""
        assert store.verify() == ()
        self.label(url, 7)
        for mode in ("r", "a"):
            with pytest.raises(SchemaVersionError, match=r"schema version 7, this version reads 1 to 2; install a dooly"):
                Store.open(url, mode)

    def test_an_earlier_layout_reads_as_this_one(self, store: Store, url: str, make_record: Make) -> None:
        """Points that were listed without names have them, in what is read and in what is only looked over; nothing changes."""
        store.write(*(make_record(n, point={"dims": [n, 2]}) for n in (32, 16)), make_record(8, point={"batch": [[1, 8]]}))
        self.label(url, 1)
        before = {name: fs.cat_file(path) for name, (fs, path) in self.raw(url).items()}
        old, key = Store.open(url), make_record(1).key
        named = (make_record(8, point={"batch": [[1, 8]]}), *(make_record(n, point={"d0": n, "d1": 2}) for n in (16, 32)))
        assert old.read(*key) == named
        assert old.points(*key) == tuple(record.point for record in named)
        assert old.has(*key, {"d0": 16, "d1": 2})
        assert (old.info().schema_version, old.info().num_records, old.verify()) == (1, 3, ())
        assert {name: fs.cat_file(path) for name, (fs, path) in self.raw(url).items()} == before

    def test_an_earlier_layout_is_written_as_this_one(self, store: Store, url: str, make_record: Make) -> None:
        """What is opened for writing goes by this version's number, takes new records, and is folded into new groups."""
        store.write(make_record(32, point={"dims": [32]}))
        self.label(url, 1)
        named = [make_record(n, point={"d0": n}) for n in (32, 64)]
        writer = Store.open(url, "a")
        writer.write(*named)
        assert (writer.info().schema_version, writer.verify()) == (2, ())
        assert writer.read(*named[0].key) == tuple(named)
        writer.compact(*named[0].key)
        assert writer.read(*named[0].key) == tuple(named)
        assert (writer.info().num_records, writer.verify()) == (2, ())

    def test_merging_an_earlier_layout_repeats_nothing(self, store: Store, url: str, make_record: Make) -> None:
        """A record that one store has in the earlier form and another in this one is one record, whichever way it goes."""
        store.write(make_record(32, point={"dims": [32]}), make_record(16, point={"dims": [16]}))
        self.label(url, 1)
        other = Store.open(f"{url}-new", "a")
        assert [other.merge(Store.open(url)), other.merge(Store.open(url)), Store.open(url, "a").merge(other)] == [2, 0, 0]
        assert other.read(*make_record(1).key) == Store.open(url).read(*make_record(1).key)
        assert len(other.read(*make_record(1).key)) == 2

    def test_other_things_are_not_stores(self, store: Store, url: str) -> None:
        """A Zarr group of another kind, or other files, are refused and left alone."""
        assert store.verify() == ()
        with pytest.raises(StoreError, match="not the root of a latency store"):
            Store.open(f"{url}/environments", "a")
        fs, path = self.raw(url)["zarr.json"]
        fs.rm_file(path)
        with pytest.raises(StoreError, match="is not empty and holds no latency store"):
            Store.open(url, "a")
        with pytest.raises(StoreError, match="mode must be"):
            Store.open(url, "w")  # type: ignore[arg-type]

    def test_read_only_store_cannot_be_written(self, store: Store, url: str, make_record: Make) -> None:
        """A store open for reading refuses every change, with advice."""
        store.write(make_record(1))
        reader = Store.open(url)
        for change in (
            lambda: reader.write(make_record(2)),
            lambda: reader.compact(*make_record(1).key),
            lambda: reader.merge(store),
            lambda: reader.write_document("traces", "t0", {}),
        ):
            with pytest.raises(StoreError, match="open it with mode='a'"):
                change()


class TestLocalStore(StoreContract):
    """A store in a local folder."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return a folder that is not there yet."""
        return str(tmp_path / "new" / "store")


class TestMemoryUrlStore(StoreContract):
    """A store at an fsspec URL."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        """Return a place of its own in the process-wide memory file system."""
        place = f"memory://{uuid.uuid4().hex}/store"
        yield place
        fs, root = fsspec.url_to_fs(place)
        if fs.exists(root):
            fs.rm(root, recursive=True)


def test_file_url_is_the_local_folder(tmp_path: Path) -> None:
    """A `file://` URL and the path open the same store."""
    Store.open(f"file://{tmp_path}/store", "a").write_document("traces", "t0", {})
    assert Store.open(tmp_path / "store").documents("traces") == ("t0",)


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    """A plain file at the path is an error in one line, in either mode."""
    (tmp_path / "store").write_text("hello")
    with pytest.raises(StoreNotFoundError, match="holds no latency store"):
        Store.open(tmp_path / "store")
    with pytest.raises(StoreError, match="needs a folder, found a file"):
        Store.open(tmp_path / "store", "a")


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize(("place", "said"), [(" ", "the place is empty"), (None, "None is no place"), (1, "1 is no place")])
def test_no_place_is_no_store(
    place: Any,  # noqa: ANN401 - what type checkers refuse
    said: str,
    mode: Literal["r", "a"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Empty text does not stand for the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=f"{said}; give a folder or a URL"):
        Store.open(place, mode)
    assert list(tmp_path.iterdir()) == []


def test_unknown_protocol() -> None:
    """A URL that fsspec does not know is an error in one line."""
    with pytest.raises(StoreError, match="fsspec cannot open this URL"):
        Store.open("nosuch://bucket/store")
