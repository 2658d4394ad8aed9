from __future__ import annotations

import pytest
import torch
from torch import nn

from dooly.engines.vllm._meta_device import MetaDevice


def test_tables_have_values_and_weights_have_none() -> None:
    """What is computed from few elements can be read; weights, and what has many elements, have sizes only."""
    with MetaDevice():
        slopes = torch.pow(torch.tensor(0.5), torch.arange(1, 9))
        linear, table = nn.Linear(8, 8, dtype=torch.bfloat16), torch.zeros(2048)
        assert slopes.tolist() == [0.5**n for n in range(1, 9)]
    assert linear.weight.is_meta
    assert linear.bias.is_meta
    assert table.is_meta


def test_both_kinds_meet_in_an_operation() -> None:
    """The result of a small and a large tensor has sizes only; a small one copies into a large one."""
    with MetaDevice():
        angles = torch.outer(torch.arange(4096), torch.arange(32))
        angles[:, 0] = torch.zeros(4096)
        angles[0].copy_(torch.ones(32))
    assert angles.is_meta
    assert angles.shape == (4096, 32)


def test_an_error_of_the_model_stays_its_own() -> None:
    """An operation that fails for another reason raises what PyTorch raises."""
    with MetaDevice(), pytest.raises(RuntimeError, match="shape"):
        torch.zeros(8).reshape(3)
    with MetaDevice(), pytest.raises(RuntimeError, match="shape"):
        torch.zeros(4096).reshape(3)


def test_a_device_that_is_named_is_taken() -> None:
    """The scope sets the device of what names none."""
    with MetaDevice():
        assert torch.zeros(2048, device="cpu").device.type == "cpu"
        assert torch.zeros(8, device="meta").is_meta
    assert torch.zeros(2048).device.type == "cpu"
