from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.device import last_level_cache_bytes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (["32K\n", "48K\n", "2048K\n", "260M\n"], 260 << 20),
        (["32K\n", "512K\n"], 512 << 10),
        (["1G"], 1 << 30),
        (["65536"], 65536),
        (["\n"], 32 << 20),
        ([], 32 << 20),
    ],
)
def test_the_largest_cache_counts(tmp_path: Path, sizes: list[str], expected: int) -> None:
    """The size is the largest that sysfs lists, in its units; 32 MiB where it lists none."""
    for number, size in enumerate(sizes):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        (folder / "size").write_text(size)
        (folder / "level").write_text("1")
    assert last_level_cache_bytes(tmp_path) == expected


def test_a_missing_folder_gives_the_default(tmp_path: Path) -> None:
    """A system without sysfs gets 32 MiB."""
    assert last_level_cache_bytes(tmp_path / "nowhere") == 32 << 20
