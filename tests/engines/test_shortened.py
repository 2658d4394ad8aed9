"""A model's first layers alone, where an engine takes a mapping in place of a function."""

from __future__ import annotations

from dooly.engines.vllm._engine import shortened


def test_lists_by_layer_are_cut_with_the_number_of_layers() -> None:
    """What has an entry a layer keeps those that stay; other lists and fields are no override."""
    config = {"num_hidden_layers": 4, "layer_types": ["full", "window"] * 2, "eos_token_id": [1, 2], "hidden_size": 64}
    assert shortened(config, 3) == {"layer_types": ["full", "window", "full"], "num_hidden_layers": 3}
    assert shortened(config, 9)["num_hidden_layers"] == 4
