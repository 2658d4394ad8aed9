"""What the documentation shows works: its Python runs, its commands parse, and those that a page asks to be run do.

The ```python blocks of a page run from top to bottom in one namespace and an empty working directory. Lines of ```sh blocks, and
those of ```console blocks that open with `$`, are commands. Comments above a block say more:

- `<!-- engine -->`: it needs the real engine. The page then runs twice, without such blocks and, marked `engine`, whole.
- `<!-- run -->`: its `dooly` commands run too, where they stand among the Python blocks.
- `<!-- output -->`: it is what the Python block before it prints.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
SHELLS = {"sh", "bash", "shell", "console"}


class Block(NamedTuple):
    """A fenced code block of a page."""

    language: str
    source: str
    line: int
    marks: frozenset[str] = frozenset()

    @property
    def runs(self) -> bool:
        """Whether the test of the page takes it."""
        return self.language == "python" or (self.language in SHELLS and "run" in self.marks) or "output" in self.marks


def blocks(text: str) -> list[Block]:
    """Return the fenced code blocks of a Markdown page, in order; `line` is that of the first line of code."""
    found, comment = [], ""
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.map is not None:
            marks = frozenset(word.strip() for word in comment.strip().removeprefix("<!--").removesuffix("-->").split(","))
            found.append(Block(token.info.strip(), token.content, token.map[0] + 2, marks & {"engine", "run", "output"}))
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


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the arguments of each `dooly` command that a block shows."""
    lines = block.source.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    elif block.language not in SHELLS:
        return
    yield from (words[1:] for line in lines for words in _split(line) if words and Path(words[0]).name == "dooly")


def runnable_pages() -> Iterator[object]:
    """Yield one test case for each page with code to run, and one more, marked `engine`, if a block of it needs the engine."""
    for page in PAGES:
        found = [block for block in blocks(page.read_text()) if block.runs]
        plain = [block for block in found if "engine" not in block.marks]
        name = str(page.relative_to(ROOT))
        if plain:
            yield pytest.param(page, plain, id=name)
        if plain != found:
            yield pytest.param(page, found, id=f"{name}-engine", marks=pytest.mark.engine)


def shown_commands() -> Iterator[object]:
    """Yield one test case for each command that a page shows."""
    for page in PAGES:
        shown = (args for block in blocks(page.read_text()) for args in commands(block))
        yield from (pytest.param(args, id=f"{page.name}: {shlex.join(args)}") for args in shown)


def exit_code(args: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Return the exit code of `dooly ARGS --help`, which parses the command and its options and runs nothing."""
    from dooly.cli import main

    monkeypatch.setattr(sys, "argv", ["dooly", *args, "--help"])
    with pytest.raises(SystemExit) as stop:
        sys.exit(main())
    return stop.value.code


@pytest.mark.parametrize(("page", "found"), list(runnable_pages()))
def test_blocks_run(
    page: Path, found: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page run in order, and print what the page says they do."""
    from dooly.cli import main

    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in found:
        if "output" in block.marks:
            assert printed == block.source, f"{page}:{block.line}"
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.source, str(page), "exec")  # tracebacks name the page's own line
            exec(code, namespace)  # noqa: S102 - the project's own pages
        else:
            codes = [main(args) for args in commands(block)]
            assert codes, f"{page}:{block.line} has no command"
            assert not any(codes), f"{page}:{block.line}"
        printed = capsys.readouterr().out


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])
def test_notebooks_run_on_the_base_installation(notebook: Path, tmp_path: Path) -> None:
    """The code cells of a notebook run in order, where nothing can be imported that only extras bring."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    extras = ("torch", "vllm", "transformers", "pyarrow", "pandas", "ray", "tokenizers", "s3fs", "fastapi", "zarr", "IPython")
    head = f"import sys; sys.modules.update(dict.fromkeys({extras!r}))\n"
    code = head + "\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert cells


@pytest.mark.parametrize("args", list(shown_commands()))
def test_commands_parse(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `dooly` command that a page shows names a subcommand and options that exist."""
    assert exit_code(args, monkeypatch) in {0, None}


@pytest.mark.parametrize("args", [["trail", "smollm2-135m"], ["trace", "smollm2-135m", "--no-such-option"]])
def test_wrong_commands_do_not_parse(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with a subcommand or an option that does not exist is refused."""
    assert exit_code(args, monkeypatch) == 2


def test_blocks_and_commands_are_found() -> None:
    """Fences are found in lists too, a comment holds for the next block only, and output lines are no commands."""
    page = """<!-- engine, run -->
```sh
dooly models
```

- item

  ```python
  b = 2
  ```

<!-- output -->
```text
dooly
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
    found = blocks(page)
    assert found[:3] == [
        Block("sh", "dooly models\n", 3, frozenset({"engine", "run"})),
        Block("python", "b = 2\n", 9),
        Block("text", "dooly\n", 14, frozenset({"output"})),
    ]
    assert [block.runs for block in found] == [True, True, True, False, False]
    shown = [args for block in found for args in commands(block)]
    assert shown == [["models"], ["trace", "m", "--json", "out.json"], ["db", "info", "a b", "poisson:rate=2,seed=0"]]
