"""The API reference, as the site shows it."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import dooly

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The page of each entry of the built site, by the entry's name, from the inventory that other sites link by."""
    pytest.importorskip("mkdocstrings")
    site = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", site], cwd=ROOT, check=True)
    _header, _, packed = (site / "objects.inv").read_bytes().partition(b"using zlib.\n")
    rows = [line.split() for line in zlib.decompress(packed).decode().splitlines()]
    return {name: page.partition("#")[0] for name, _role, priority, page, _title in rows if priority == "1"}


def test_the_reference_has_an_entry_for_every_public_name(entries: dict[str, str]) -> None:
    """Each name in `dooly.__all__` has its entry on the page of `dooly`, and the page has none beside them."""
    shown = {name.split(".")[1] for name, page in entries.items() if page == "reference/dooly/"}
    assert shown == set(dooly.__all__)
