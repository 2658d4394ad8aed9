"""The boundary: exit codes, errors of one line, interruption, and what gets loaded."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from dooly.cli._app import app, main

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
DOOLY = (sys.executable, "-m", "dooly")


def test_help_is_no_error(dooly: Callable[..., tuple[int, str, str]]) -> None:
    """`--help` lists every command on stdout and exits with 0."""
    code, out, err = dooly("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in ("models", "trace", "profile", "simulate", "validate", "db"))


def commands(command: Any, *path: str) -> list[tuple[str, ...]]:  # noqa: ANN401 - a command or a group of such
    """Return the words that call a command and each below it."""
    return [path, *(found for name, inner in getattr(command, "commands", {}).items() for found in commands(inner, *path, name))]


@pytest.mark.parametrize("path", commands(typer.main.get_command(app)), ids=lambda path: " ".join(("dooly", *path)))
def test_help_fits_80_columns(
    path: tuple[str, ...], dooly: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal of 80 columns the help of every command cuts nothing: each option stands there by its whole name.

    No help speaks of a store or a device that its command does not take.
    """
    monkeypatch.setenv("COLUMNS", "80")
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    code, out, err = dooly(*path, "--help")
    assert (code, err) == (0, "")
    names = {name for option in command.params for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}
    assert names - set(re.findall(r"--[a-z0-9-]+", out)) == set()
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    told = {name for option in command.params for name in re.findall(r"--db|--hardware", getattr(option, "help", None) or "")}
    assert told <= names


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["Missing command", "dooly --help"]),
        (["trail"], ["'trail'", "dooly --help"]),
        (["db", "look"], ["'look'", "dooly db --help"]),
        (["trace"], ["'MODEL'", "dooly trace --help"]),
        (["trace", "smollm2-135m", "--no-such-option"], ["--no-such-option", "dooly trace --help"]),
        (["trace", "no-such-model"], ["'no-such-model'", "dooly models"]),
        (["trace", "smollm2-135m", "--engine", "torch", "--tensor-parallel-size", "2"], ["--tensor-parallel-size", "torch"]),
        (["trace", "smollm2-135m", "--engine", "torch", "--hardware", "h200"], ["--hardware", "torch"]),
        (["trace", "smollm2-135m", "--engine", "torch", "--quantization", "fp8"], ["--quantization", "torch"]),
        (["trace", "smollm2-135m", "--hardware", "h9000"], ["--hardware", "h9000", "h200"]),
        (["trace", "smollm2-135m", "--dtype", "int4"], ["--dtype", "'int4'", "bfloat16"]),
        (["trace", "smollm2-135m", "--json", "/no/such/folder/t.json"], ["--json", "/no/such/folder/t.json"]),
        (["trace", "smollm2-135m", "--html", "-"], ["--html", "--json -"]),
        (["trace", "smollm2-135m", "--batch", "decode"], ["--batch", "'decode'", "prefill=512"]),
        (["profile", "smollm2-135m"], ["--db"]),
        (["simulate", "smollm2-135m", "--db", "x", "--workload", "y", "--csv", "-"], ["--csv", "--json -"]),
        (["simulate", "smollm2-135m", "--db", "x", "--workload", "y", "--html", "-"], ["--html", "--json -"]),
        (["profile", "smollm2-135m", "--db", "x", "--budget-seconds", "-1"], ["--budget-seconds"]),
        (["simulate", "smollm2-135m", "--db", "x", "--workload", "y", "--max-num-seqs", "0"], ["--max-num-seqs", "0"]),
        (["db", "info", "no-such-store"], ["no-such-store", "dooly profile"]),
    ],
)
def test_wrong_usage_and_input(arguments: list[str], parts: list[str], dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Wrong usage or input exits with 2, and one line on stderr names the value and what to do."""
    code, out, err = dooly(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("dooly: ")
    assert all(part in err for part in parts)


def test_a_folder_without_config(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A folder without a config.json is named, with exit code 2."""
    code, _, err = dooly("trace", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert str(tmp_path) in err
    assert "config.json" in err


def test_the_version_is_the_distributions(dooly: Callable[..., tuple[int, str, str]]) -> None:
    """`--version` prints the installed version and exits with 0."""
    assert dooly("--version") == (0, f"dooly {metadata.version('dooly-llm')}\n", "")


def test_an_unexpected_error_is_one_line(db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """An error that nobody foresaw, here a full disk, exits with 1 in one line that leads to --debug."""
    code, _, err = dooly("db", "export", db, "--output", "/dev/full")
    assert (code, err.count("\n")) == (1, 1)
    assert "No space left on device" in err
    assert "--debug" in err


def test_without_torch_the_extras_are_named(dooly: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that needs torch, on the base installation, says in one line what to install."""
    from dooly.cli import _trace

    def missing(*_given: object, **_settings: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(_trace, "trace_model", missing)
    code, _, err = dooly("trace", "smollm2-135m")
    assert (code, err.count("\n")) == (1, 1)
    assert "torch is not installed; `pip install 'dooly-llm[cpu]'`" in err


@pytest.mark.parametrize("arguments", [("--debug", "trace", "no-such-model"), ("trace", "no-such-model", "--debug")])
def test_debug_shows_the_traceback(arguments: tuple[str, ...], dooly: Callable[..., tuple[int, str, str]]) -> None:
    """`--debug`, before or after the command, shows the traceback and keeps the exit code."""
    code, _, err = dooly(*arguments)
    assert code == 2
    assert err.startswith("Traceback")
    assert "ModelNotFoundError" in err


def test_an_interrupted_command_says_how_to_go_on(tmp_path: Path) -> None:
    """Ctrl-C ends in one line that holds the command to repeat."""
    workload = tmp_path / "requests.csv"
    os.mkfifo(workload)
    command = ("simulate", "smollm2-135m", "--db", "some where", "--workload", str(workload))
    process = subprocess.Popen([*DOOLY, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with workload.open("w"):  # opens once the command reads it
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (130, 1)
    again = f"dooly simulate smollm2-135m --db 'some where' --workload {workload}"
    assert err == f"dooly: interrupted; start again with: {again}\n"


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (("profile", "m", "--db", "d"), "what is done is kept; go on with"),
        (("kv", "profile", "m"), "what is done is kept; go on with"),
        (("search", "m", "--state=s.jsonl"), "what is done is kept; go on with"),
        (("--debug", "search", "m", "--state", "s.jsonl"), "what is done is kept; go on with"),
        (("search", "m"), "start again with"),
        (("serve", "m"), "start again with"),
    ],
)
def test_an_interrupted_command_says_what_it_keeps(
    command: tuple[str, ...], left: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what measures, and a search with a state, goes on where it was."""

    def interrupt(_words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dooly.cli._app._run", interrupt)
    assert main(command) == 130
    assert capsys.readouterr().err == f"dooly: interrupted; {left}: dooly {' '.join(command)}\n"


def test_a_reader_that_leaves_early_is_no_error(db: Path) -> None:
    """A closed pipe, as behind `head`, ends the command without a word."""
    for command in (("models",), ("db", "export", str(db))):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([*DOOLY, *command], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "unloaded"),
    [
        (["--help"], {"torch", "vllm", "catboost", "zarr", "sympy", "plotly"}),
        (["simulate", "smollm2-135m", "--db", "/no/such/store", "--workload", "poisson:rate=2"], {"torch", "vllm"}),
    ],
)
def test_commands_load_what_they_need_only(arguments: list[str], unloaded: set[str]) -> None:
    """`--help` loads nothing heavy, and `simulate` neither torch nor an engine."""
    code = f"import sys; from dooly.cli import main; main({arguments!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "dooly.cli" in loaded
    assert loaded & unloaded == set()
