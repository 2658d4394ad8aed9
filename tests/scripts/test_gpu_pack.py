"""Packing an engine for a machine without network, and unpacking it there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
BASH = "/bin/bash"
PACKER = """#!/bin/bash
mkdir -p "$1/part1" "$1/part2"
head -c 2000000 /dev/urandom >"$1/part1/engine.tar.xz"
"""
PIP = """#!/bin/bash
# Stands where no package index is: notes what would be fetched, and where it would go.
echo "$@" >"$FETCHED"
"""


def _wheel(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "VALUE = 7\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _run(script: str, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [BASH, str(SCRIPTS / script), *map(str, args)]
    environment = {"PATH": paths} | environment
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", ["gpu_pack.sh", "gpu_unpack.sh"])
def test_scripts_are_well_formed(script: str) -> None:
    """The shell reads each to its end, and each may be executed."""
    assert subprocess.run([BASH, "-n", str(SCRIPTS / script)], check=False).returncode == 0
    assert os.access(SCRIPTS / script, os.X_OK)


def test_parts_are_unpacked_into_one_folder(tmp_path: Path) -> None:
    """Archives and wheels of several parts become importable together, also when they arrive call by call."""
    _wheel(tmp_path / "part1", "dooly_packed_wheel")
    (tmp_path / "engine.py").write_text("VALUE = 8\n")
    (tmp_path / "part2").mkdir()
    with tarfile.open(tmp_path / "part2" / "engine.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "engine.py", "dooly_packed_engine.py")
    site = tmp_path / "site"
    for part in ("part1", "part2"):
        done = _run("gpu_unpack.sh", site, tmp_path / part)
        assert done.returncode == 0, done.stderr
    code = "import dooly_packed_wheel as w, dooly_packed_engine as e; print(w.VALUE, e.VALUE)"
    seen = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert seen.stdout.split() == ["7", "8"]


def test_a_folder_that_is_no_part_is_refused(tmp_path: Path) -> None:
    """An empty folder, as a part that did not arrive leaves, is named in one line."""
    (tmp_path / "part1").mkdir()
    done = _run("gpu_unpack.sh", tmp_path / "site", tmp_path / "part1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "part1 holds neither wheels nor archives" in done.stderr


@pytest.mark.parametrize(("most", "code"), [(60, 0), (1, 1)])
def test_packing_adds_our_needs_and_minds_the_size(tmp_path: Path, most: int, code: int) -> None:
    """Dooly's packages go into the last part; a part that is too large to travel is refused by name."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in (("packer", PACKER), ("python3", PIP)):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    fetched, out = tmp_path / "fetched", tmp_path / "out"
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    done = _run("gpu_pack.sh", bin_folder / "packer", out, most, PATH=path, FETCHED=str(fetched))
    assert done.returncode == code, done.stderr
    assert f"-d {out}/part2" in fetched.read_text()
    assert ("part1 is 2 MiB, above 1" in done.stderr) == (code == 1)
