"""The run over a GPU: what it plans, how it is cut off, and how it goes on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_run.py"


@pytest.fixture(scope="module")
def gpu_run() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_run"] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
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
    from dooly.simulate import parse_workload

    plan = gpu_run.PLANS["cuda"]
    for load in plan.loads:
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


def test_a_part_is_stopped_with_all_that_it_started(
    gpu_run: ModuleType, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Past its limit a part is interrupted, gets time to write what it has, and is left for the next call."""
    kept = state / "results" / "kept"
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "try:\n    time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    pathlib.Path({str(kept)!r}).write_text(str(child.pid)); raise\n"
    )
    begin = time.monotonic()
    assert _main(gpu_run, monkeypatch, [_python(gpu_run, "slow", code, 2)], "--state", str(state)) == 1
    assert time.monotonic() - begin < 15
    assert _rows(capsys)["slow"]["exit"] is None
    assert not Path("/proc", kept.read_text(), "cmdline").is_file() or not Path("/proc", kept.read_text(), "cmdline").read_text()
    assert not (state / "done" / "slow").exists()


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


def test_the_state_comes_back_from_its_archive(
    gpu_run: ModuleType, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces, joined and unpacked as the help says, are what was found and what is done; older pieces are gone."""
    monkeypatch.setattr(gpu_run, "PIECE_BYTES", 100)
    out = tmp_path / "out"
    out.mkdir()
    (out / "state.tar.xz.77").write_text("old")
    code = f"import pathlib; pathlib.Path({str(state / 'results' / 'r.json')!r}).write_text('{{}}')"
    assert _main(gpu_run, monkeypatch, [_python(gpu_run, "a", code)], "--state", str(state), "--out", str(out)) == 0
    pieces = sorted(path.name for path in out.iterdir())
    assert len(pieces) > 1
    assert pieces == [f"state.tar.xz.{i:02d}" for i in range(len(pieces))]
    back = tmp_path / "back"
    back.mkdir()
    subprocess.run(["/bin/bash", "-c", f"cat {out}/state.tar.xz.* | tar xJ -C {back}"], check=True)
    assert (back / "results" / "r.json").read_text() == "{}"
    assert (back / "done" / "a").exists()
    assert _main(gpu_run, monkeypatch, [_python(gpu_run, "a", "raise SystemExit(1)")], "--state", str(back)) == 0
