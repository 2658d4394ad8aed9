"""What an environment says of the engine that measured: what ran, not what was asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from dooly.catalog import describe_environment
from dooly.engines import ServingConfig

if TYPE_CHECKING:
    from dooly.engines import Engine


@pytest.mark.parametrize("served", [(None, "auto"), ("fp8", "fp8_e4m3")])
def test_an_environment_says_how_weights_and_cache_were_quantised(served: tuple[str | None, str]) -> None:
    """As the engine took the model, whatever its configuration or the settings say."""
    torch = pytest.importorskip("torch")
    facts = {"name": "vllm", "version": "0.32.0", "attention_backend": "CPU_ATTN", "block_size": 16, "execution_mode": "eager"}
    quantised = {"quantization": served[0], "kv_cache_dtype": served[1], "model_runner": "v1"}
    engine = SimpleNamespace(network=torch.nn.Linear(1, 1), **facts, **quantised)
    found = describe_environment(cast("Engine", engine), ServingConfig())
    assert (found.quantization, found.kv_cache_dtype) == served
