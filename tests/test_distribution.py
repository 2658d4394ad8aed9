"""What is released: a wheel and an sdist, and the wheel at work where nothing but the base dependencies is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable
    from email.message import Message

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it, so that nothing which the sdist lacks is in it."""
    pytest.importorskip("build", reason="`pip install 'dooly-llm[test]'` brings it")
    pytest.importorskip("hatchling", reason="`pip install 'dooly-llm[test]'` brings it")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def facts(built: Path) -> Message:
    """The wheel's metadata."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(files.read(name))


@pytest.fixture(scope="module")
def clean(built: Path, facts: Message, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel, what its metadata requires, what that requires, and no more."""
    place = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    for distribution in _required(facts.get_all("Requires-Dist", [])):
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    (wheel,) = built.glob("*.whl")
    subprocess.run([place / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    return place / "bin"


def _required(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """Return what a distribution's requirements name, extras left out, and what these require, from this environment."""
    found: dict[str, metadata.Distribution] = {}
    left = list(requirements)
    while left:
        requirement = Requirement(left.pop())
        if requirement.name.lower() in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        distribution = metadata.distribution(requirement.name)
        assert requirement.specifier.contains(distribution.version, prereleases=True)
        found[requirement.name.lower()] = distribution
        left += distribution.requires or ()
    return list(found.values())


def test_the_wheel_answers_for_a_gpu_on_its_base_dependencies(clean: Path, tmp_path: Path) -> None:
    """Installed without an extra, one command tells how a 70 B model would be served on four H200s; no torch is there."""
    workload = "closed:concurrency=4,requests=8,prompt=128,output=8"
    asked = ["simulate", "llama-3.1-70b", "--hardware", "h200", "--tensor-parallel-size", "4", "--workload", workload]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([clean / "dooly", *asked, "--json", "found.json"], cwd=tmp_path, env=environment, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["requests"] == 8
    assert 0.001 < found["tpot_s"]["mean"] < 0.1
    subprocess.run([clean / "python", "-m", "pip", "check"], cwd=tmp_path, env=environment, check=True)
    code = "import importlib.util as u, sys; sys.exit(any(u.find_spec(name) for name in ('torch', 'vllm', 'pytest', 'fastapi')))"
    subprocess.run([clean / "python", "-c", code], cwd=tmp_path, env=environment, check=True)


def test_the_wheel_holds_types_data_and_licences(built: Path, facts: Message) -> None:
    """Type checkers find all three packages typed; licences come with the code and with the data that others measured."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    assert {"dooly/py.typed", "passes/py.typed", "dbstore/py.typed", "dooly/data/NOTICE"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dooly", "passes", "dbstore"}
    assert facts.get_all("License-File") == ["LICENSE", "dooly/data/NOTICE"]
    assert all(any(name.endswith(f".dist-info/licenses/{file}") for name in names) for file in facts.get_all("License-File", []))


def test_the_version_has_one_source(facts: Message) -> None:
    """`pyproject.toml` alone says which version this is, and which Pythons run it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert facts["Version"] == project["version"]
    pythons = [text.rpartition(" ")[2] for text in facts.get_all("Classifier", []) if "Python :: 3." in text]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert facts["Requires-Python"] == f">={pythons[0]}"


def test_the_sdist_holds_what_it_takes_to_test_it(built: Path) -> None:
    """From the sdist one builds, tests and documents: the wheel above was built from it."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "mkdocs.yml", "tests/public_api.txt", "docs/index.md"} <= names
    assert not any(name.startswith((".git/", ".venv", "site/")) for name in names)
