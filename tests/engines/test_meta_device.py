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
    """The result of a small and a large tensor has sizes only, in lists and products too; a small one copies into a large one."""
    with MetaDevice():
        small, large = torch.arange(8.0), torch.zeros(4096)
        found = [
            torch.cat([small, large]),
            torch.stack([large[:8], small]),
            torch.outer(large, small),
            small @ torch.zeros(8, 4096),
        ]
        found += [small[large.long()], torch.as_tensor(large), torch.nn.functional.linear(small, torch.zeros(4096, 8))]
        found[2][:, 0] = large
        found[2][0].copy_(small)
    assert [tensor.is_meta for tensor in found] == [True] * 7
    assert [tuple(tensor.shape) for tensor in found[:4]] == [(4104,), (2, 8), (4096, 8), (4096,)]


def test_values_are_not_lost_unseen() -> None:
    """What has sizes only is not written into a tensor whose values may be read."""
    with MetaDevice():
        small, large = torch.zeros(8), torch.zeros(4096)
        for write in (lambda: small.copy_(large[:8]), lambda: small.add_(large[:8]), lambda: small.__setitem__(0, large[0])):
            with pytest.raises(NotImplementedError, match="writes into a small tensor"):
                write()


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
