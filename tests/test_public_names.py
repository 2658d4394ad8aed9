"""What `import dooly` offers."""

from __future__ import annotations

import ast
import doctest
import importlib
import operator
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dooly

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(set(dooly.__all__) - {"__version__"}))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    """Each name in `__all__` exists and has a docstring."""
    assert getattr(dooly, name).__doc__


@pytest.mark.parametrize(("name", "room"), sorted(dooly._MOVED.items()))
def test_a_name_that_moved_warns_for_a_release(name: str, room: str) -> None:
    """A name that stood in `dooly` is still there, says where it stands now and until when, and is the same."""
    with pytest.warns(DeprecationWarning, match=f"dooly.{name} is {room}.{name} now; the short name goes with Dooly 0.2.0$"):
        found = getattr(dooly, name)
    assert found is getattr(importlib.import_module(room), name)


def test_type_checkers_see_the_names_that_there_are() -> None:
    """What is imported for type checkers is what loads at first use, and of what moved, what still does."""
    tree = ast.parse((ROOT / "dooly" / "__init__.py").read_text())
    rooms = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] in ("dooly", "dbstore")
        for alias in node.names
    }
    assert rooms == dooly._ROOMS | dooly._MOVED
    assert sorted([*dooly._ROOMS, "__version__"]) == sorted(dooly.__all__)


def test_rooms_are_there_without_an_import_of_their_own() -> None:
    """After `import dooly`, a room is loaded when it is named; what is none is no attribute."""
    code = "import dooly; print(dooly.predict.BatchArrays.__name__, hasattr(dooly, 'trail'), hasattr(dooly, '_trail'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "BatchArrays False False\n"


def test_the_version_has_not_reached_what_is_to_go() -> None:
    """Names that go with a release are gone when the distribution is of that release."""
    version, gone = (tuple(map(int, text.split("."))) for text in (dooly.__version__, dooly._GONE_IN))
    assert version < gone
    assert f"the old places warn, and go with {dooly._GONE_IN}." in (ROOT / "CHANGELOG.md").read_text()


def test_names_and_rooms_are_listed() -> None:
    """`dir(dooly)` shows the public names and every room, loaded or not, and each is there."""
    code = "import dooly; names = dir(dooly); print(*names); [getattr(dooly, name) for name in names]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = done.stdout.split()
    rooms = {file.stem for file in (ROOT / "dooly").glob("[a-z]*.py")} | {
        file.parent.name for file in (ROOT / "dooly").glob("*/__init__.py")
    }
    assert listed == sorted({*dooly.__all__, *rooms})


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that `dooly` does not have is named in an AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'trail'"):
        dooly.trail  # noqa: B018 - the access is what fails


@pytest.mark.parametrize("name", sorted(dooly.__all__))
def test_no_package_shares_its_name_with_a_public_name(name: str) -> None:
    """A public name is one thing to Python, type checkers and the reference: nothing in the package can shadow it."""
    assert not (ROOT / "dooly" / name).exists()
    assert not (ROOT / "dooly" / f"{name}.py").exists()


def test_importing_dooly_is_light() -> None:
    """`import dooly` loads nothing of weight, and its names load neither torch, nor an engine, nor CatBoost."""
    code = (
        "import sys, dooly; print(*({'numpy', 'numba', 'scipy', 'networkx'} & sys.modules.keys()));"
        "[getattr(dooly, name) for name in dooly.__all__];"
        "print(*({'torch', 'vllm', 'catboost', 'sympy', 'zarr'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n\n"


def test_signatures_are_those_promised(load_script: Callable[[str], Any]) -> None:
    """Names, arguments, defaults and methods are pinned: a change of them is deliberate, and stands in CHANGELOG.md."""
    module = load_script("scripts/public_api.py")
    pinned = (ROOT / "tests" / "public_api.txt").read_text().splitlines()
    assert list(module.public_api()) == pinned, "run scripts/public_api.py, and say in CHANGELOG.md what changed"


def test_the_changelog_tells_of_this_version() -> None:
    """The version of the distribution has its section, newest first under what is not released."""
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0] == "## Unreleased"
    assert any(heading.startswith(f"## {dooly.__version__}") for heading in headings) or len(headings) == 1


_NAMES = sorted(set(dooly.__all__) - {"__version__"})
_BESIDE = sorted(
    f"{room}.{name}"
    for name, room in dooly._MOVED.items()
    if ">>>" in (getattr(importlib.import_module(room), name).__doc__ or "")
)
_STARTS_THE_ENGINE = "profile"


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=[pytest.mark.engine] * (name == _STARTS_THE_ENGINE)) for name in _NAMES), *_BESIDE]
)
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every public name has an example, and what it shows is what Python answers."""
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    value = operator.attrgetter(name.removeprefix("dooly."))(dooly)
    found = doctest.DocTestFinder(recurse=True).find(value, name, globs={"dooly": dooly})
    ran = [runner.run(test) for test in found if test.examples]
    assert ran
    assert not sum(result.failed for result in ran)
