"""The command line as a user has it, and a small store to point it at."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from dbstore import Environment, Record, Store
from dooly.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def dooly(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs `dooly` with arguments through its entry point."""

    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A store with two operations: one measured at two points, one infeasible."""
    environment = Environment(
        device="AMD EPYC 9554",
        device_kind="cpu",
        driver="6.8.0",
        torch_version="2.13.0",
        engine="vllm",
        engine_version="0.32.0",
        attention_backend="CPU_ATTN",
        dtype="bfloat16",
        kv_cache_dtype="auto",
        block_size=128,
        execution_mode="eager",
        quantization=None,
        num_threads=2,
    )
    path = tmp_path / "db"
    store = Store.open(path, "a")
    store.write_document("environments", environment.digest, environment.to_json())
    for num_tokens in (1, 16):
        samples_ns = np.arange(1, 4) * 100 * num_tokens
        store.write(Record("a0", environment.digest, {"num_tokens": num_tokens}, samples_ns, {"wall_s": 1.5}))
    store.write(Record("b0", environment.digest, {"num_tokens": 1}, np.empty(0, np.int64), infeasible="out of memory"))
    return path
