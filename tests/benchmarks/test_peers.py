"""Scripts that run the programs of other simulators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("name", "run", "arguments"),
    [
        ("peers", "vidur", ["vidur", "vidur"]),
        ("peers", "mocker", ["mocker"]),
        ("llmservingsim", "lookups", ["lookups", "LLMServingSim"]),
        ("hisim", "hisim", ["tair-kvcache/hisim"]),
    ],
)
def test_an_interpreter_may_be_told_from_here(
    name: str, run: str, arguments: list[str], load_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers run in folders of their own, where a relative path says something else."""
    script, seen = load_script(f"benchmarks/{name}.py"), []

    def asked_for(asked: Any) -> dict[str, str]:  # noqa: ANN401 - what argparse found
        seen.append(asked.python)
        return {}

    asked_for.__name__ = run
    monkeypatch.setattr(script, run, asked_for)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments, "--python", "venv/bin/python"])
    script.main()
    assert seen == [str(Path.cwd() / "venv" / "bin" / "python")]
