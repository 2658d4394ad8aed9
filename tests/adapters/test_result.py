"""What exports say of themselves."""

from __future__ import annotations

from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dooly.adapters import export_blis, export_llmservingsim, export_planner, export_vidur
from dooly.adapters._result import write_file
from dooly.errors import InvalidInputError
from dooly.predict import default_serving, load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.adapters._result import ExportResult
    from dooly.engines import ModelSource


@pytest.mark.parametrize("export", [export_blis, export_llmservingsim, export_planner, export_vidur])
@pytest.mark.parametrize(("hardware", "is_said"), [("h100", True), ("rtxpro6000", False)])
def test_an_export_says_that_its_times_are_of_short_bursts(
    export: Callable[..., ExportResult], hardware: str, *, is_said: bool, model: ModelSource, tmp_path: Path
) -> None:
    """Whatever the tool, where a power limit is known that makes them longer."""
    serving = default_serving(model, hardware, max_model_len=64, max_num_batched_tokens=64, max_num_seqs=4)
    latency = load_latency_model(model=model, serving=serving, hardware=hardware)
    said = [note for note in export(latency, model, serving, tmp_path / "out").notes if "short bursts" in note]
    text = "times are those of short bursts: by the device's power limit products take 18 % longer after 65 ms of them"
    assert said == [text] * is_said


def test_who_is_ended_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file holds the rows of other ranks too: it is whole, the one before or the new one; an error leaves nothing beside it."""
    path = tmp_path / "mlp.csv"
    write_file(path, "before")
    write = Path.write_bytes

    def half(aside: Path, content: bytes) -> int:
        write(aside, content[:2])
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InvalidInputError, match=r"mlp\.csv cannot be written \(No space left on device\)"):
        write_file(path, "after")
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    """Whoever alone could read it before alone can read it afterwards; any name that a folder takes will do."""
    path = tmp_path / ("n" * 250)
    write_file(path, "before")
    path.chmod(0o600)
    write_file(path, "after")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("after", 0o600)
