from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dooly.tracing import ConfigFields, Provenance, name_sizes


@dataclass(frozen=True)
class Vision:
    """A nested configuration."""

    hidden_size: int = 8
    patch_size: int = 4


@dataclass(frozen=True)
class Text:
    """Another one."""

    hidden_size: int = 8
    num_heads: int = 2


@dataclass(frozen=True)
class Config:
    """A configuration with equal values, nested ones, and what is no size."""

    vision_config: Vision = field(default_factory=Vision)
    text_config: Text = field(default_factory=Text)
    inner_size: int = 8
    num_experts: int = 8
    pad_token_id: int = 0
    tied: bool = True
    eps: float = 1e-5

    attribute_map = {"num_local_experts": "num_experts"}  # noqa: RUF012 - as Transformers writes it


class Share(nn.Parameter):
    """A parameter of a class of its own, as vLLM's are."""


class Model(nn.Module):
    """Sizes by every way that a constructor can take."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, inner = config.text_config.hidden_size, config.inner_size
        self.config = config
        self.q_size = hidden // config.text_config.num_heads
        self.widths = (hidden, 8, 2 * inner)
        self.literal = 8
        self.linear = nn.Linear(hidden, inner)
        self.share = Share(torch.empty(size=(config.num_experts, 3, hidden)))
        self.turned = nn.Parameter(torch.empty(hidden, inner).t())
        self.joined = nn.Parameter(torch.cat([torch.empty(hidden), torch.empty(inner)]))
        self.register_buffer("steps", torch.arange(0, inner, 2))
        self.register_buffer("ones", torch.zeros(1).new_full([hidden, 8], 1.0))
        self.blocks = nn.ModuleList([nn.LayerNorm(config.vision_config.hidden_size)])
        self.tied = self.linear

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


def _names(written: dict[str, object] | None = None) -> Provenance:
    config, fields = copy.deepcopy(Config()), ConfigFields()
    fields.track_config(config, written=written)
    with torch.device("meta"):
        return name_sizes(lambda: Model(config), fields)


def test_sizes_are_named_by_the_fields_that_they_were_made_of() -> None:
    """Each attribute and axis has the expression that the constructor computed; literals and unknown ways have none."""
    sizes = {path: str(expr) for path, expr in _names().sizes.items() if not path.startswith("config.")}
    assert sizes == {
        "q_size": "(hidden_size//num_heads)",
        "widths[0]": "hidden_size",
        "widths[2]": "2*inner_size",
        "share.size(0)": "num_experts",
        "share.size(2)": "hidden_size",
        "steps.size(0)": "((inner_size + 1)//2)",
        "ones.size(0)": "hidden_size",
        "linear.in_features": "hidden_size",
        "linear.out_features": "inner_size",
        "linear.weight.size(0)": "inner_size",
        "linear.weight.size(1)": "hidden_size",
        "linear.bias.size(0)": "inner_size",
        "blocks.0.normalized_shape[0]": "vision_config.hidden_size",
        "blocks.0.weight.size(0)": "vision_config.hidden_size",
        "blocks.0.bias.size(0)": "vision_config.hidden_size",
        "tied.in_features": "hidden_size",
        "tied.out_features": "inner_size",
        "tied.weight.size(0)": "inner_size",
        "tied.weight.size(1)": "hidden_size",
        "tied.bias.size(0)": "inner_size",
    }


def test_fields_have_values() -> None:
    """Positive integers are fields; a nested one's name is told apart where another has it, and flags and zeros are none."""
    assert {str(s): v for s, v in _names().values.items()} == {
        "inner_size": 8,
        "num_experts": 8,
        "hidden_size": 8,
        "num_heads": 2,
        "vision_config.hidden_size": 8,
        "patch_size": 4,
    }


def test_fields_are_named_as_in_the_file() -> None:
    """A field that the file has under another name carries that name."""
    assert str(_names({"num_local_experts": 8}).sizes["share.size(0)"]) == "num_local_experts"
    assert str(_names({"num_experts": 8}).sizes["share.size(0)"]) == "num_experts"


def test_another_value_than_the_traced_models_has_no_name() -> None:
    """An expression counts only where it has the value that the traced model has there."""
    names = _names()
    assert str(names.of("share.size(0)", 8)) == "num_experts"
    assert names.of("share.size(0)", 9) is None
    assert names.of("share.size(1)", 3) is None
    assert str(names.below("network").of("network.q_size", 4)) == "(hidden_size//num_heads)"


def test_tensors_made_outside_are_not_noted() -> None:
    """Making tensors goes on as usual before and after the build, and a plain build names nothing."""
    assert name_sizes(lambda: Model(Config()), ConfigFields()).sizes == {}
    assert torch.empty(3).shape == (3,)
