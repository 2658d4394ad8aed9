"""Looking over a store: whatever was altered is found and named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbstore import Record, Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dbstore import Environment


def complaint(path: Path) -> str:
    """Return the one line that says what is wrong with a store; empty where nothing is."""
    try:
        problems = Store.open(path).verify()
    except StoreError as error:
        return str(error)
    return problems[0].message if problems else ""


def test_a_flipped_bit_in_any_byte_is_named(tmp_path: Path, environment: Environment, make_record: Callable[..., Record]) -> None:
    """With one bit of any byte of any file flipped, the file or its group is named in one line; flipped back, all is well."""
    store = Store.open(tmp_path, "a")
    store.write_document("environments", environment.digest, environment.to_json())
    store.write_document("traces", "t0", {"layers": 32})
    store.write(make_record(1, samples_ns=[3, 1, 2]), make_record(2, samples_ns=[], infeasible="out of memory"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 11
    for file in files:
        whole = file.read_bytes()
        for at in range(len(whole)):
            altered = bytearray(whole)
            altered[at] ^= 1 << at % 8
            file.write_bytes(altered)
            line = complaint(tmp_path)
            group = file.parents[2] if file.parts[-3:-1] == ("samples_ns", "c") else file.parent
            assert line.startswith(str(group).removesuffix("/samples_ns")), (file, at)
            assert "\n" not in line
        file.write_bytes(whole)
    assert complaint(tmp_path) == ""
