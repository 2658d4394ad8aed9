"""A model's first layers alone, in the forms in which engines take a configuration."""

from __future__ import annotations

from types import SimpleNamespace

from dooly.engines._first_layers import first_layers, keep_first_layers

CONFIG = {"num_hidden_layers": 4, "layer_types": ["full", "window"] * 2, "eos_token_id": [1, 2], "hidden_size": 64}


def test_lists_by_layer_are_cut_with_the_number_of_layers() -> None:
    """What has an entry a layer keeps those that stay; other lists and fields are no override."""
    assert first_layers(CONFIG, 3) == {"layer_types": ["full", "window", "full"], "num_hidden_layers": 3}
    assert first_layers(CONFIG, 9)["num_hidden_layers"] == 4


def test_a_configuration_is_cut_in_its_text_model() -> None:
    """As a mapping is; one that has no layers yet stays as it is."""
    text, empty = SimpleNamespace(**CONFIG), SimpleNamespace()
    nested = SimpleNamespace(get_text_config=lambda: text, num_hidden_layers=7)
    assert keep_first_layers(nested, 3) is nested
    assert vars(text) == CONFIG | first_layers(CONFIG, 3)
    assert nested.num_hidden_layers == 7
    keep_first_layers(SimpleNamespace(get_text_config=lambda: empty), 3)
    assert not vars(empty)
