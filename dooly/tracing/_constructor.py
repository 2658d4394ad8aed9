"""Name a module's sizes by the arguments of its constructor: the constructor is called once more, on the meta device."""

from __future__ import annotations

import inspect
import logging
import random
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from typing import TYPE_CHECKING, Any

from dooly.errors import TraceError
from dooly.tracing._provenance import NO_PROVENANCE, ConfigFields, Provenance, is_config, name_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn


def constructed_sizes(model_class: Callable[..., nn.Module], args: Sequence[object], kwargs: Mapping[str, object]) -> Provenance:
    """Return the sizes that a constructor call sets, over its integer arguments and the fields of its configuration objects.

    The constructor gets copies of its arguments. What it prints is dropped, and the global random state of Python, NumPy and
    PyTorch's CPU stays as it was. Whatever else it changes outside the module, it changes twice: generators of its own and those
    of GPUs go on, counters count, and a cached function that it calls may keep a tensor on the meta device.

    A constructor that is given tensors or modules, cannot be called again, or fails on the meta device gives no names; the reason
    is logged at debug level.
    """
    import torch

    if any(isinstance(a, (torch.Tensor, torch.nn.Module)) for a in (*args, *kwargs.values())):
        return NO_PROVENANCE
    fields = ConfigFields()

    def build() -> nn.Module:
        call = _tracked(inspect.signature(model_class).bind(*deepcopy(args), **deepcopy(kwargs)), fields)
        return model_class(*call.args, **call.kwargs)

    try:
        with _quiet_meta_device():
            return name_sizes(build, fields)
    except TraceError as error:
        logging.getLogger(__name__).debug("%s: sizes keep the names of module attributes: %s", model_class.__name__, error)
        return NO_PROVENANCE


def instance_sizes(module: nn.Module) -> Provenance:
    """Return the sizes of a module that was made from its `config` alone, as those of Transformers are."""
    config = getattr(module, "config", None)
    return constructed_sizes(type(module), (config,), {}) if is_config(config) else NO_PROVENANCE


def _tracked(call: inspect.BoundArguments, fields: ConfigFields) -> inspect.BoundArguments:
    """Return a call with its integer arguments and the integers of its configuration objects tracked."""
    call.apply_defaults()
    for name, value in call.arguments.items():
        if is_config(value):
            fields.track_config(value, name)
        elif call.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            call.arguments[name] = {key: fields.track(key, item) for key, item in value.items()}
        else:
            call.arguments[name] = fields.track(name, value)
    return call


@contextmanager
def _quiet_meta_device() -> Iterator[None]:
    """Make tensors on the meta device, print nothing and keep the global random state but GPUs', for the length of the scope."""
    import numpy as np
    import torch

    states: Any = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is what must be kept
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("meta"),
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - as above
