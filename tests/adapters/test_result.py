"""What exports say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.adapters import export_blis, export_llmservingsim, export_planner, export_vidur
from dooly.predict import default_serving, load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
