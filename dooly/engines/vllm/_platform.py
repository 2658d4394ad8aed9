"""A stand-in for the CUDA platform: vLLM builds a model as it would on a GPU that is not there.

vLLM asks its platform what a device can do, and compiled extensions whether they hold a kernel. The stand-in answers
for a target, from facts. No kernel ever runs: operators have schemas and shapes, and modules of Python that only launch kernels
are empty.

What vLLM found out about its platform stays in module variables and caches for as long as a process lives. So the stand-in is set
up before vLLM is imported, and only in a process that does nothing else; `_elsewhere` starts one.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from dooly.engines.vllm._operators import PACKAGED, define_missing_operators, name_all_operators
from dooly.engines.vllm._triton import show_launches, show_uncaptured_code
from dooly.engines.vllm._version import import_vllm

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from dooly.engines._targets import Target

_COMPILED = re.compile(r"^vllm\.(\w+\.)*_\w*C(_stable_libtorch)?$")
"""Extensions that a build for CUDA has, and a build for CPUs lacks."""
_VENDORED = re.compile(r"^(vllm\.third_party\.(deep_gemm|flashmla\.flash_mla_interface)|cutlass|cuda)(\.|$)")
"""Python packages of kernels that vLLM's build for CUDA carries or installs, and its build for CPUs lacks."""
_DEVICES = 1024
"""How many GPUs there seem to be: as many as any layout of ranks takes."""
_IMAGES = re.compile(r"^torchvision(\.|$)")
"""Image functions, which Transformers imports for models that take images, and which build for CUDA alone: no text needs them."""


def stand_in(target: Target | None) -> None:
    """Make this process one in which vLLM finds a GPU, or its own device for None, before anything of vLLM is imported."""
    sys.meta_path.append(_EmptyModules(is_cuda=target is not None))  # last: what is really there is taken
    if target is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import_vllm()
        import vllm._C_stable_libtorch  # noqa: F401 - the operators themselves, on a machine that has them

        define_missing_operators()
        show_launches()
        _without_device()
        from vllm import platforms

        # A build for CPUs turns Triton off, whose kernels have a say in which code a GPU runs.
        platforms.vllm_version_matches_substr = lambda _substr: False
        platforms._current_platform = _platform(target)()  # noqa: SLF001 - as vLLM keeps what it detected
        show_uncaptured_code()
        name_all_operators()
    import_vllm()
    _inspect_here()


def _without_device() -> None:
    """Let code that prepares a device's streams and gives back its memory run where there is none."""
    import torch

    torch.cuda.Stream = torch.cuda.Event = _absent("Stream")  # type: ignore[misc]
    torch.accelerator.empty_cache = torch.accelerator.empty_host_cache = lambda: None


def _inspect_here() -> None:
    """Let vLLM look at a model's class in this process, since one that it starts has no stand-ins, and keep nothing of it."""
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda look: look()  # noqa: SLF001 - has no public name
    registry._LazyRegisteredModel._save_modelinfo_to_cache = lambda *_: None  # noqa: SLF001


class _EmptyModules(MetaPathFinder, Loader):
    """Finds modules that a trace imports and never runs, and gives them empty: those of a build for CUDA, and image functions."""

    def __init__(self, *, is_cuda: bool) -> None:
        self.known = (_COMPILED, _VENDORED, _IMAGES) if is_cuda else (_IMAGES,)

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return an empty package for the name of such a module."""
        return ModuleSpec(fullname, self, is_package=True) if any(known.match(fullname) for known in self.known) else None

    def exec_module(self, module: ModuleType) -> None:
        """Give a module a stand-in for whatever is asked of it."""
        module.__dict__.update({"__getattr__": _absent, "__version__": "0"})


class _Absent(type):
    """A class in place of a class, function, type or constant of an empty module, with more of its kind within."""

    def __getattr__(cls, name: str) -> Any:  # noqa: ANN401 - as asked
        return _absent(name)

    def __getitem__(cls, _item: object) -> _Absent:
        return cls

    def __or__(cls, _other: object) -> _Absent:
        return cls

    __ror__ = __or__


def _absent(name: str) -> Any:  # noqa: ANN401 - a class or a function
    """Return a function that lays out weights, by its shapes; for anything else a class that can be made, and does nothing."""
    if name.startswith("__"):
        raise AttributeError(name)
    nothing = {"__init__": lambda *_, **__: None, "__call__": lambda self, *_, **__: self}
    return PACKAGED[name] if name in PACKAGED else _Absent(name, (), nothing)


def _platform(target: Target) -> type:
    """Return vLLM's CUDA platform with a target's facts in place of the driver's."""
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    def fact(value: object) -> Any:  # noqa: ANN401 - a classmethod
        return classmethod(lambda _cls, *_device, **_named: value)

    facts = {
        "get_device_capability": DeviceCapability(*target.capability),
        "get_device_name": target.device,
        "get_device_total_memory": target.memory_bytes,
        "num_compute_units": target.num_sms,
        "device_count": _DEVICES,
        "current_device": "meta",
        "is_integrated_gpu": False,
        "is_fully_connected": True,
        "is_arch_support_pdl": target.capability >= (9, 0),
        "get_all_device_numa_nodes": None,
    }
    methods = {name: fact(value) for name, value in facts.items()} | {
        "apply_config_platform_defaults": classmethod(_choose_forms)
    }
    return type("StandInPlatform", (CudaPlatformBase,), methods)


def _choose_forms(_platform: type, config: Any) -> None:  # noqa: ANN401 - vLLM's VllmConfig
    """Leave small operations in the form that the compiler of a GPU's engine gets to fuse, and a trace on a CPU shows as well.

    So an operation is the same on every device. Rotary embeddings and the quantisation of activations stay operators.
    """
    config.compilation_config.custom_ops[:] = ["none", "+rotary_embedding", "+quant_fp8"]
