"""What the site takes from the code while it is built: a hook of mkdocs.

A page says where: `<!-- error classes -->` and `<!-- error messages -->` for what can go wrong, `<!-- command line -->` for all
commands with their options.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("dooly", "passes", "dbstore")
USAGE = "typer.BadParameter"
"""What the command line refuses options with."""
_PLACE = re.compile("<!-- (error classes|error messages|command line) -->")
_TEXT = (ast.Constant, ast.JoinedStr)


def on_page_markdown(markdown: str, **_about: object) -> str:
    """Put what the code says where a page asks for it."""
    made = {"error classes": error_classes, "error messages": error_messages, "command line": command_line}
    return _PLACE.sub(lambda place: made[place[1]](), markdown)


def classes() -> dict[str, type[Exception]]:
    """Return every error that is raised on purpose, by name, roots first."""
    import dbstore._errors
    import dooly.errors
    import passes._errors

    found: dict[str, type[Exception]] = {}
    for module in (dooly.errors, dbstore._errors, passes._errors):  # noqa: SLF001 - their homes
        found |= {
            name: value
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == module.__name__
        }
    return found


def error_classes() -> str:
    """Return a table of the errors: what each is to Python, when it is raised, and what to do."""
    lines = ["| error | is also | when | what to do |", "|---|---|---|---|"]
    for name, kind in classes().items():
        paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
        when = " ".join(paragraphs[0].split())
        to_do = " ".join(
            " ".join(text.split()).removeprefix("What to do: ") for text in paragraphs if text.startswith("What to do")
        )
        parents = ", ".join(f"`{parent.__name__}`" for parent in kind.__bases__)
        lines.append(f"| `{kind.__module__.partition('.')[0]}…{name}` | {parents} | {when} | {to_do} |".replace("…", "."))
    return "\n".join(lines)


def error_messages() -> str:
    """Return all messages by their error, with `…` for what is known only when they are raised."""
    known = {*classes(), USAGE}
    found: dict[str, set[str]] = defaultdict(set)
    sources = [path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    shared = {name: value for source in sources for name, value in _texts(ast.parse(source).body)}
    for source in sources:
        for name, message in raised(source, shared):
            if name in known and message.strip("… :"):
                found[name].add(message)
    lines: list[str] = []
    for name in sorted(found):
        title = "Wrong usage of the command line" if name == USAGE else f"`{name}`"
        lines += [f"### {title}", "", *(f"- {_escape(message)}" for message in sorted(found[name], key=str.lower)), ""]
    return "\n".join(lines)


def raised(source: str, shared: Mapping[str, ast.expr]) -> Iterator[tuple[str, str]]:
    """Yield error and message of each `raise` in a module.

    Args:
        source: The module's text.
        shared: Texts of other modules, by the names that they are imported by.
    """
    tree = ast.parse(source)
    assigned = {**shared, **dict(_texts(ast.walk(tree)))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            first = node.exc.args[0]
            yield ast.unparse(node.exc.func), _template(first, assigned)


def _texts(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Yield the variables that are set to text, each with it."""
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, _TEXT):
            yield node.targets[0].id, node.value


def _template(text: ast.expr, assigned: Mapping[str, ast.expr]) -> str:
    """Return a message as far as the code tells it: its own words, and those of variables that are set to text."""
    if isinstance(text, ast.FormattedValue):
        text = text.value
    if isinstance(text, ast.Name):
        known = assigned
        text, assigned = known.get(text.id, text), {name: value for name, value in known.items() if name != text.id}
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return text.value
    if isinstance(text, ast.JoinedStr):
        return "".join(_template(value, assigned) for value in text.values)
    return "…"


def _escape(message: str) -> str:
    """Return a message as Markdown shows it to the letter."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(message.split()))


def command_line() -> str:
    """Return every command with its arguments and options, in the order that `dooly --help` lists them."""
    import typer
    from typer.core import TyperGroup

    from dooly.cli._app import app

    def sections(command: object, path: str) -> Iterator[str]:
        if isinstance(command, TyperGroup):
            for name, inner in command.commands.items():
                yield from sections(inner, f"{path} {name}")
            return
        options = [_option(p) for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]  # type: ignore[attr-defined]
        yield f"## {path}\n\n{command.help}\n"  # type: ignore[attr-defined]
        yield "\n".join(["| | |", "|---|---|", *options, ""] if options else [])

    return "\n".join(sections(typer.main.get_command(app), "dooly"))


def _option(param: object) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*param.opts, *param.secondary_opts))  # type: ignore[attr-defined]
    is_argument = param.param_type_name == "argument"  # type: ignore[attr-defined]
    name = f"`{param.metavar or param.name.upper()}`" if is_argument else flags  # type: ignore[attr-defined]
    told = " ".join((param.help or "").split())  # type: ignore[attr-defined]
    default = param.default  # type: ignore[attr-defined]
    if default not in (None, False, (), []) and not callable(default) and not is_argument:
        told += f" Default: `{getattr(default, 'value', default)}`."
    needed = " Must be given." if param.required else ""  # type: ignore[attr-defined]
    return f"| {name} | {told.replace('|', '/')}{needed} |"
