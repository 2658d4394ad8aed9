"""`dooly models`: the models whose configurations ship with Dooly."""

from __future__ import annotations

from dooly.cli._output import new_table, show


def models() -> None:
    """List the models known by name."""
    from dooly.engines import listed_models

    table = new_table("name", "architecture", "layers", "hidden size", numbers=("layers", "hidden size"))
    for model in listed_models():
        config = model.text_config
        sizes = (str(config.get(name, "-")) for name in ("num_hidden_layers", "hidden_size"))
        table.add_row(model.name, model.config["architectures"][0], *sizes)
    show(table)
