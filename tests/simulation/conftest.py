from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dooly.simulation import SchedulerConfig


@pytest.fixture(scope="session")
def oracle(load_script: Callable[[str], Any]) -> Any:  # noqa: ANN401 -- a module
    """Return `oracle.py`, which runs our scheduler beside vLLM's."""
    return load_script("tests/simulation/oracle.py")


@pytest.fixture(scope="session")
def make_vllm_scheduler(oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[SchedulerConfig], Any]]:  # noqa: ANN401
    """Return a factory of vLLM schedulers for a one-layer model."""
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield oracle.vllm_scheduler_factory(tmp_path_factory.mktemp("model"))
