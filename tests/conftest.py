"""What tests of several rooms share."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from dooly.engines import ModelSource, find_model
from dooly.tracing import TracedModel, TracedOperation

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

ROOT = Path(__file__).parents[1]

# No test fails for the time that a machine takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell's background job ignores Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Readline, which pytest loads, tells what tests start how wide a terminal is, and pytest-xdist so tells its workers: tables would
# fold. What it sets is in the environment of the process, and not in Python's.
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], Any]:
    """Loads a script as a module, given its path from the root of the repository; it finds its neighbours, as where it is run."""

    def load(path: str) -> Any:  # noqa: ANN401 - a module
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # where its dataclasses look themselves up
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend((ROOT / path).parent)
            spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def modules(load_script: Callable[[str], Any]) -> ModuleType:
    """The small plain modules of `plain_modules.py`; torch loads when a test first asks for them."""
    found: ModuleType = load_script("tests/plain_modules.py")
    return found


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelSource]:
    """Return a function that makes the configuration of a Llama of two small layers and 512 tokens, with any field replaced."""

    def make(name: str = "tiny", **fields: object) -> ModelSource:
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "num_hidden_layers": 2,
            "vocab_size": 512,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
        folder = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | fields))
        return find_model(str(folder))

    return make


@pytest.fixture(scope="session")
def operation() -> Callable[..., TracedOperation]:
    """Return a function that makes a decoder operation over `num_tokens`, with any field replaced."""

    def make(signature: str, module: str, **fields: Any) -> TracedOperation:  # noqa: ANN401 - the fields' own types
        values: dict[str, Any] = {
            "signature": signature,
            "name": module.rpartition(".")[2],
            "module": module,
            "module_class": "Linear",
            "stage": "decoder",
            "stateful": False,
            "count": 1,
            "placements": ((module, fields.get("count", 1)),),
            "inputs": (),
            "outputs": (),
            "flops": "0",
            "bytes": "0",
            "request_dims": ("num_tokens",),
            "request_flops": "0",
            "request_bytes": "0",
            "attributes": {},
            "canonical": {},
        }
        return TracedOperation(**(values | fields))

    return make


@pytest.fixture(scope="session")
def residuals(modules: ModuleType) -> TracedModel:
    """The operations of an embedding, two equal layers and a head, its tokens named as an engine names them."""
    import torch

    from dooly.tracing import trace

    module = trace(modules.Residuals(), request_dims={"ids": ("num_tokens",)})
    module(torch.ones(5, dtype=torch.int64))
    return module.traced
