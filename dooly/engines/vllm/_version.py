"""The one place that knows where supported vLLM versions (0.26 to 0.32) differ, and how to import it quietly."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.errors import EngineError, pip_install

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""Environment variable that chooses the generation of the model runner; without it the engine chooses."""
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    MODEL_RUNNER: "0",
}
"""In-process engine, no chatter, no network. A value that the user has set wins.

And the first generation of the model runner, on every device: CUDA engines take the second for dense models by themselves, whose
sampler is no module, so that its calls cannot be timed.
"""


_set_by_vllm: dict[str, str] = {}
"""Environment variables that vLLM set while it was imported: an engine that starts later needs them again."""


def import_vllm() -> Any:  # noqa: ANN401 - a module
    """Import vLLM with in-process execution and quiet logs, and return it.

    Raises:
        EngineError: vLLM is not installed.
    """
    # On a GPU the sampler asks for FlashInfer without a look whether it is there.
    sampler = {} if find_spec("flashinfer") else {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
    for name, value in (_ENVIRONMENT | sampler | _set_by_vllm).items():
        os.environ.setdefault(name, value)
    before = dict(os.environ)
    # vLLM applies its level late: what its modules log while they load would still reach stderr.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import vllm
    except ModuleNotFoundError as error:
        msg = f"engine vllm: {error.name} is not installed; install it with {pip_install('cpu')}, or with `[cuda]`"
        raise EngineError(msg) from error
    _set_by_vllm.update((name, value) for name, value in os.environ.items() if before.get(name) != value)
    return vllm


def text_only() -> dict[str, Any]:
    """Return the engine argument by which a model that takes images is served for text alone, if this version has one."""
    from vllm.engine.arg_utils import EngineArgs

    name = "language_model_only"
    return {name: True} if name in EngineArgs.__dataclass_fields__ else {}


def let_engine_choose_model_runner() -> None:
    """Leave the generation of the model runner to the engines that start in this process from now on."""
    _ENVIRONMENT.pop(MODEL_RUNNER, None)
    os.environ.pop(MODEL_RUNNER, None)


def variables() -> dict[str, str | None]:
    """Return the variables of this process that change how an engine runs in it."""
    found = {name: os.environ.get(name) for name in ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU")}
    return found | {MODEL_RUNNER: os.environ.get(MODEL_RUNNER, _ENVIRONMENT.get(MODEL_RUNNER))}


def elsewhere() -> str:
    """Return what to do where it may be the device at hand that refuses, not the model; nothing on a GPU."""
    from vllm.platforms import current_platform

    return "; trace it as on a GPU, with --hardware h200" if current_platform.is_cpu() else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what Python code prints from the caller's streams within the scope: vLLM asks them for their file descriptors too."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def process_kept() -> Iterator[None]:
    """Leave environment variables, warning filters and PyTorch's random state as vLLM found them at the scope's begin.

    And what Transformers and its hub library make of the environment when they are imported, once and for all.

    Raises:
        EngineError: The process is one of a PyTorch process group, which vLLM would take for its own and end.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise EngineError("engine vllm: this process belongs to a torch.distributed group; trace in a process of its own")
    environment, random_state = dict(os.environ), torch.get_rng_state()
    try:
        with warnings.catch_warnings(), _libraries_kept():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_rng_state(random_state)


@contextmanager
def _libraries_kept() -> Iterator[None]:
    """Import Transformers and its hub library with the caller's environment; within the scope they stay offline and silent."""
    if find_spec("vllm") is None:
        yield  # importing it will tell
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub import constants
        from transformers.utils import logging as messages
    offline, verbosity = constants.HF_HUB_OFFLINE, messages.get_verbosity()
    constants.HF_HUB_OFFLINE = offline or "HF_HUB_OFFLINE" not in os.environ
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        messages.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        messages.set_verbosity(verbosity)


@contextmanager
def fresh_module_caches() -> Iterator[None]:
    """Give models built within the scope their own rotary embeddings: vLLM shares them across models of a process.

    Without this, a model on the meta device would hand its empty tables to the engine that starts next.
    """
    from vllm.model_executor.layers import rotary_embedding

    shared = rotary_embedding._ROPE_DICT  # noqa: SLF001 - has no public name
    kept = dict(shared)
    shared.clear()
    try:
        yield
    finally:
        shared.clear()
        shared.update(kept)


@contextmanager
def model_type_known(model_type: object) -> Iterator[None]:
    """Let Transformers read the configuration of a model that vLLM has code for, and itself none, by its fields, in the scope.

    Such models come with code of their own, which is never run; what is a field in `config.json` is an attribute. A sliding
    window that another field turns off is none, as in the classes of Transformers.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig
    from vllm.transformers_utils import config as engine

    registered = engine._CONFIG_REGISTRY  # noqa: SLF001 - has no public name
    if not isinstance(model_type, str) or model_type in CONFIG_MAPPING or model_type in registered:
        yield
        return

    class FieldsConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # it has no types
        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:  # noqa: ANN401 - as it is inherited
            off = {"sliding_window": None} if config_dict.get("use_sliding_window") is False else {}
            return super().from_dict(config_dict | off, **kwargs)

    FieldsConfig.model_type = model_type
    CONFIG_MAPPING.register(model_type, FieldsConfig)
    try:
        yield
    finally:
        CONFIG_MAPPING._extra_content.pop(model_type)  # noqa: SLF001 - has no public way back


@contextmanager
def transformers_classes_kept() -> Iterator[None]:
    """Keep vLLM from decorating the Transformers classes of a model that it takes from there: others in the process use them."""
    from vllm.model_executor.models.transformers.base import Base

    decorate = Base._decorate_for_torch_compile  # noqa: SLF001 - has no public name
    Base._decorate_for_torch_compile = lambda _model, **_named: None  # noqa: SLF001
    try:
        yield
    finally:
        Base._decorate_for_torch_compile = decorate  # noqa: SLF001


def model_runner_generation(runner: object) -> str:
    """Return `v1` or `v2`: which of vLLM's two GPU model runners an object is."""
    return "v2" if type(runner).__module__.startswith("vllm.v1.worker.gpu.") else "v1"
