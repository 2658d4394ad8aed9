"""The API reference, as the site shows it."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import dbstore
import dooly
import dooly.errors
import passes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning, such as of a link or an anchor that leads nowhere, ends the build."""
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def entries(site: Path) -> dict[str, str]:
    """The page of each entry of the built site, by the entry's name, from the inventory that other sites link by."""
    _header, _, packed = (site / "objects.inv").read_bytes().partition(b"using zlib.\n")
    rows = [line.split() for line in zlib.decompress(packed).decode().splitlines()]
    return {name: page.partition("#")[0] for name, _role, priority, page, _title in rows if priority == "1"}


def test_the_reference_has_an_entry_for_every_public_name(entries: dict[str, str]) -> None:
    """Each name in `dooly.__all__` has its entry on the page of `dooly`, and the page has none beside them."""
    shown = {name.split(".")[1] for name, page in entries.items() if page == "reference/dooly/"}
    assert shown == set(dooly.__all__)


def test_every_error_has_its_row_and_its_messages(site: Path) -> None:
    """Each error class is listed with what to do, and each that is raised with its messages, in the words of the code."""
    page = html.unescape((site / "errors" / "index.html").read_text())
    kinds = [kind for module in (dooly.errors, dbstore, passes) for kind in vars(module).values() if _is_error(kind)]
    assert len(kinds) > 10
    for kind in kinds:
        rows = re.findall(rf"<td><code>\w+\.{kind.__name__}</code></td>\s*<td>.*?</td>\s*<td>(.+?)</td>\s*<td>(.+?)</td>", page)
        assert len(rows) == 1, kind
    with pytest.raises(dooly.DoolyError) as raised:
        dooly.parse_workload("poisson:rate=-1,prompt=1,output=1")
    words = str(raised.value).partition(", got ")[0].rpartition(": ")[2]
    assert f"{words}, got …" in page


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def test_every_command_has_its_options(site: Path) -> None:
    """Each command of the command line has a section, with every option that it takes."""
    import typer

    from dooly.cli._app import app

    page = (site / "reference" / "command-line" / "index.html").read_text()
    groups = [("dooly", typer.main.get_command(app))]
    for path, group in groups:
        for name, command in group.commands.items():  # type: ignore[attr-defined] # a group
            if hasattr(command, "commands"):
                groups.append((f"{path} {name}", command))
                continue
            _before, found, behind = page.partition(f">{path} {name}<")
            assert found, name
            section = behind.partition("<h2")[0]
            missing = [option for param in command.params for option in param.opts if option.startswith("--")]
            assert [option for option in missing if f"<code>{option}</code>" not in section] == [], name
