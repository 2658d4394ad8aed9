"""The command `dooly` and its boundary: every error ends as one line on stderr and an exit code.

Exit codes: 0 done; 2 wrong usage or input; 1 everything else; 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from typing import TYPE_CHECKING, Annotated

import typer

from dooly.cli._compare import compare
from dooly.cli._db import db
from dooly.cli._hardware import hardware
from dooly.cli._kv import kv
from dooly.cli._models import models
from dooly.cli._profile import profile
from dooly.cli._search import search
from dooly.cli._serve import serve
from dooly.cli._simulate import simulate
from dooly.cli._trace import trace
from dooly.cli._validate import validate
from dooly.errors import DoolyError, InvalidInputError, pip_install

if TYPE_CHECKING:
    from collections.abc import Sequence

_DEBUG = "--debug"

app = typer.Typer(name="dooly", add_completion=False, pretty_exceptions_enable=False)
for command in (models, hardware, trace, profile, simulate, search, validate, compare, serve):
    app.command()(command)
app.add_typer(db)
app.add_typer(kv)


def _show_version(asked: bool) -> None:  # noqa: FBT001 - the form of an option's callback
    if asked:
        from importlib import metadata

        typer.echo(f"dooly {metadata.version('dooly-llm')}")
        raise typer.Exit


@app.callback()
def dooly(
    *,
    _debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error; may stand anywhere.")] = False,
    _version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Predict operation latencies for LLM serving: trace, profile, simulate, search, validate, serve."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: What follows `dooly`; None takes the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != _DEBUG]
    try:
        _run(words)
    except typer.Exit as done:
        return done.exit_code
    except KeyboardInterrupt:
        left = "what is done is kept; go on with" if _keeps_what_is_done(words) else "start again with"
        typer.echo(f"dooly: interrupted; {left}: dooly {shlex.join(given)}", err=True)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the boundary
        if _DEBUG in given:
            traceback.print_exc()
        else:
            typer.echo(f"dooly: {_line(error)}", err=True)
        return _exit_code(error)
    return 0


def _run(words: list[str]) -> None:
    command = typer.main.get_command(app)
    with command.make_context("dooly", words) as context:
        command.invoke(context)


def _keeps_what_is_done(words: Sequence[str]) -> bool:
    """Tell whether a command that is interrupted goes on where it was: what measures does, and a search with a state."""
    return "profile" in words[:2] or ("search" in words[:1] and any(word.partition("=")[0] == "--state" for word in words))


def _line(error: Exception) -> str:
    """Return an error in one line: as it was written where we raised it on purpose, else with its type and a next step."""
    from dbstore import StoreError

    message = " ".join(str(error).split())
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        place = context.command_path if context else "dooly"
        return f"{' '.join(error.format_message().split()).rstrip('.')}; see `{place} --help`"
    if isinstance(error, DoolyError | StoreError):
        return message
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return f"torch is not installed; {pip_install('cpu')} brings it with an engine, `[cuda]` too, `[torch]` alone"
    return f"{type(error).__name__}: {message}; run it again with {_DEBUG} for the traceback"


def _exit_code(error: Exception) -> int:
    from dbstore import StoreNotFoundError

    return 2 if isinstance(error, typer.TyperException | InvalidInputError | StoreNotFoundError) else 1
