"""What the documentation shows works: its Python runs and its commands parse.

The ```python blocks of a page run from top to bottom in one namespace and an empty working directory. A block under the comment
`<!-- engine -->` needs the real engine: the page then runs twice, without such blocks and, marked `engine`, whole.
Lines of ```sh blocks, and those of ```console blocks that open with `$`, are commands.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A fenced code block of a page."""

    language: str
    source: str
    line: int
    engine: bool


def blocks(text: str) -> list[Block]:
    """Return the fenced code blocks of a Markdown page, in order; `line` is that of the first line of code."""
    found, comment = [], ""
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.map is not None:
            found.append(Block(token.info.strip(), token.content, token.map[0] + 2, "<!-- engine -->" in comment))
        comment = token.content if token.type == "html_block" else ""
    return found


def _split(line: str) -> Iterator[list[str]]:
    """Yield the words of each simple command of a shell line."""
    words: list[str] = []
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            yield words
            words = []
        elif words or "=" not in word:  # NAME=value before a command sets its environment
            words.append(word)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each `dooly` command that a page's shell blocks show."""
    for block in blocks(text):
        lines = block.source.replace("\\\n", " ").splitlines()
        if block.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        elif block.language not in {"sh", "bash", "shell"}:
            continue
        yield from (words[1:] for line in lines for words in _split(line) if words and Path(words[0]).name == "dooly")


def python_pages() -> Iterator[object]:
    """Yield one test case for each page with Python, and one more, marked `engine`, if a block of it needs the engine."""
    for page in PAGES:
        found = [block for block in blocks(page.read_text()) if block.language == "python"]
        plain = [block for block in found if not block.engine]
        name = str(page.relative_to(ROOT))
        if plain:
            yield pytest.param(page, plain, id=name)
        if plain != found:
            yield pytest.param(page, found, id=f"{name}-engine", marks=pytest.mark.engine)


def shown_commands() -> Iterator[object]:
    """Yield one test case for each command that a page shows."""
    for page in PAGES:
        yield from (pytest.param(args, id=f"{page.name}: {shlex.join(args)}") for args in commands(page.read_text()))


def exit_code(args: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Return the exit code of `dooly ARGS --help`, which parses the command and its options and runs nothing."""
    from dooly.cli import main

    monkeypatch.setattr(sys, "argv", ["dooly", *args, "--help"])
    with pytest.raises(SystemExit) as stop:
        sys.exit(main())
    return stop.value.code


@pytest.mark.parametrize(("page", "found"), list(python_pages()))
def test_python_blocks_run(page: Path, found: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run in order."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in found:
        code = compile("\n" * (block.line - 1) + block.source, str(page), "exec")  # tracebacks name the page's own line
        exec(code, namespace)  # noqa: S102 - the project's own pages


@pytest.mark.parametrize("args", list(shown_commands()))
def test_commands_parse(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `dooly` command that a page shows names a subcommand and options that exist."""
    assert exit_code(args, monkeypatch) in {0, None}


@pytest.mark.parametrize("args", [["trail", "smollm2-135m"], ["trace", "smollm2-135m", "--no-such-option"]])
def test_wrong_commands_do_not_parse(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with a subcommand or an option that does not exist is refused."""
    assert exit_code(args, monkeypatch) == 2


def test_blocks_and_commands_are_found() -> None:
    """Fences are found in lists too, an engine comment holds for the next block only, and output lines are no commands."""
    page = """<!-- engine -->
```python
a = 1
```

- item

  ```python
  b = 2
  ```

```console
$ ls && OMP_NUM_THREADS=1 .venv/bin/dooly trace m \\
    --json out.json | head  # comment
dooly is not a command here
```

```sh
dooly db info 'a b' poisson:rate=2,seed=0 > log
```
"""
    assert blocks(page)[:2] == [Block("python", "a = 1\n", 3, engine=True), Block("python", "b = 2\n", 9, engine=False)]
    assert list(commands(page)) == [["trace", "m", "--json", "out.json"], ["db", "info", "a b", "poisson:rate=2,seed=0"]]
