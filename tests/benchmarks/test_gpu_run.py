"""The run over a GPU: what it plans, how it is cut off, and how it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_run.py"


@pytest.fixture(scope="module")
def gpu_run(load_script: Callable[[str], Any]) -> ModuleType:
    """The script as a module."""
    module: ModuleType = load_script("benchmarks/gpu_run.py")
    return module


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """An empty state."""
    for name in ("logs", "done", "results", "groundtruth"):
        (tmp_path / "state" / name).mkdir(parents=True)
    return tmp_path / "state"


def _main(gpu_run: ModuleType, monkeypatch: pytest.MonkeyPatch, parts: list[Any], *args: str) -> int:
    monkeypatch.setattr(gpu_run, "parts", lambda *_: parts)
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", "--device", "cpu", *args])
    return int(gpu_run.main())


def _rows(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {row["part"]: row for row in rows}


def _python(gpu_run: ModuleType, name: str, code: str, limit_s: int = 20, **fields: Any) -> Any:  # noqa: ANN401 - a Part
    return gpu_run.Part(name, (sys.executable, "-c", code), limit_s, **fields)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_part_has_a_name_and_fits_a_call(gpu_run: ModuleType, device: str, tmp_path: Path) -> None:
    """Names are distinct file names; no part takes longer than one call of 600 s."""
    parts = gpu_run.parts(gpu_run.PLANS[device], device, tmp_path)
    names = [part.name for part in parts]
    assert len(set(names)) == len(names) >= 6
    assert all(Path(name).name == name for name in names)
    assert all(part.limit_s <= 300 for part in parts)


def test_commands_parse(gpu_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `dooly` command of the plan names options that exist, and each workload of it is one."""
    from dooly.cli import main
    from dooly.simulation import parse_workload

    plan = gpu_run.PLANS["cuda"]
    for load in {load for work in plan.work for load in getattr(work, "loads", ())}:
        parse_workload(load.partition("=")[2])
    for part in gpu_run.parts(plan, "cuda", tmp_path):
        if "dooly" in part.command:
            monkeypatch.setattr(sys, "argv", ["dooly", *part.command[3:], "--help"])
            with pytest.raises(SystemExit) as stop:
                sys.exit(main())
            assert stop.value.code in {0, None}, part.command


def test_a_second_call_runs_what_is_left(
    gpu_run: ModuleType, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that ended well is not run again; one that failed is, and the others run in spite of it."""
    runs = state / "results" / "runs"
    count = f"import pathlib; p = pathlib.Path({str(runs)!r}); p.write_text((p.read_text() if p.exists() else '') + NAME)"
    parts = [
        _python(gpu_run, "a", f"NAME = 'a'; {count}"),
        _python(gpu_run, "b", f"NAME = 'b'; {count}; raise SystemExit('no engine')"),
        _python(gpu_run, "c", f"NAME = 'c'; {count}"),
    ]
    assert _main(gpu_run, monkeypatch, parts, "--state", str(state)) == 1
    assert {name: row["exit"] for name, row in _rows(capsys).items()} == {"a": 0, "b": 1, "c": 0}
    assert "no engine" in (state / "logs" / "b.log").read_text()
    parts[1] = replace(parts[1], command=(sys.executable, "-c", f"NAME = 'b'; {count}"))
    assert _main(gpu_run, monkeypatch, parts, "--state", str(state)) == 0
    assert {name: row.get("left") for name, row in _rows(capsys).items()} == {"a": "done", "b": None, "c": "done"}
    assert runs.read_text() == "abcb"


def _ends(pid: int) -> bool:
    """Tell whether a process ends within a few seconds; one that was not waited for has no command line any more."""
    command = Path("/proc", str(pid), "cmdline")
    for _ in range(50):
        try:
            alive = bool(command.read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            return True
        if not alive:
            return True
        time.sleep(0.1)
    return False


CHILD = "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
"""A process that no interrupt ends, as an engine's workers may be; it prints once it ignores them."""
PARENT = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE)
child.stdout.readline()
"""


def test_a_part_is_stopped_with_all_that_it_started(
    gpu_run: ModuleType, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Past its limit a part is interrupted, gets time to write what it has, and is left for the next call."""
    kept = state / "results" / "kept"
    note = f"pathlib.Path({str(kept)!r}).write_text(str(child.pid)); raise"
    code = f"{PARENT}\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    {note}"
    begin = time.monotonic()
    assert _main(gpu_run, monkeypatch, [_python(gpu_run, "slow", code, 3)], "--state", str(state)) == 1
    assert time.monotonic() - begin < 15
    assert _rows(capsys)["slow"]["exit"] is None
    assert _ends(int(kept.read_text()))
    assert not (state / "done" / "slow").exists()


def test_what_a_part_leaves_behind_is_ended(gpu_run: ModuleType, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that fails by itself may leave a process that holds the device: it does not outlive the part."""
    kept = state / "results" / "kept"
    code = f"{PARENT}\npathlib.Path({str(kept)!r}).write_text(str(child.pid)); raise SystemExit(3)"
    assert _main(gpu_run, monkeypatch, [_python(gpu_run, "crash", code)], "--state", str(state)) == 1
    assert _ends(int(kept.read_text()))


def test_parts_that_do_not_fit_or_lack_a_package_wait(
    gpu_run: ModuleType, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing starts that may outlast the call; a part that needs a missing package is left for another machine."""
    parts = [
        _python(gpu_run, "long", "pass", 100),
        _python(gpu_run, "elsewhere", "pass", needs="no_such_package"),
        _python(gpu_run, "short", "pass", 5),
    ]
    assert _main(gpu_run, monkeypatch, parts, "--state", str(state), "--seconds", "30") == 0
    rows = _rows(capsys)
    assert "takes up to 100 s, 2" in rows["long"]["left"]
    assert "needs no_such_package" in rows["elsewhere"]["left"]
    assert rows["short"]["exit"] == 0


def _unpack(out: Path, back: Path) -> None:
    """Bring the state back as the help says."""
    back.mkdir()
    subprocess.run(["/bin/bash", "-c", f"cat $(ls -d {out}/state-* | tail -n 1)/* | tar xJ -C {back}"], check=True)


def test_the_state_comes_back_from_its_archive(
    gpu_run: ModuleType, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces, joined and unpacked as the help says, are what was found and what is done; older archives are gone."""
    monkeypatch.setattr(gpu_run, "PIECE_BYTES", 100)
    out, back = tmp_path / "out", tmp_path / "back"
    code = f"import pathlib; pathlib.Path({str(state / 'results' / 'r.json')!r}).write_text('{{}}')"
    parts = [_python(gpu_run, "a", code), _python(gpu_run, "b", "pass")]
    assert _main(gpu_run, monkeypatch, parts, "--state", str(state), "--out", str(out)) == 0
    (folder,) = out.iterdir()
    pieces = sorted(path.name for path in folder.iterdir())
    assert len(pieces) > 1
    assert pieces == [f"state.tar.xz.{i:02d}" for i in range(len(pieces))]
    _unpack(out, back)
    assert (back / "results" / "r.json").read_text() == "{}"
    assert (back / "done" / "a").exists()
    assert _main(gpu_run, monkeypatch, [_python(gpu_run, "a", "raise SystemExit(1)")], "--state", str(back)) == 0


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_an_archive_that_is_cut_off_leaves_the_one_before(
    gpu_run: ModuleType, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """A call that ends between two pieces leaves what the call before it wrote, and the next call writes anew."""
    monkeypatch.setattr(gpu_run, "PIECE_BYTES", 100)
    out, write, written = tmp_path / "out", Path.write_bytes, 0

    def fails(path: Path, content: bytes) -> int:
        nonlocal written
        written += 1
        if written > writes:
            raise KeyboardInterrupt
        return write(path, content)

    (state / "results" / "r").write_text("first")
    gpu_run.archive(state, out)
    (state / "results" / "r").write_text("second")
    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(KeyboardInterrupt):
        gpu_run.archive(state, out)
    monkeypatch.setattr(Path, "write_bytes", write)
    _unpack(out, tmp_path / "old")
    assert (tmp_path / "old" / "results" / "r").read_text() == "first"
    gpu_run.archive(state, out)
    _unpack(out, tmp_path / "new")
    assert (tmp_path / "new" / "results" / "r").read_text() == "second"
    assert len(list(out.iterdir())) == 1
