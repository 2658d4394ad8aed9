"""What is searched: models on devices under engine settings, each combination a candidate."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import TYPE_CHECKING, Any

from dooly.engines import ModelSource, ServingConfig
from dooly.errors import InvalidInputError
from dooly.predict import default_serving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dooly.predict import Interconnect

_ALWAYS_NAMED = ("dtype", "tensor_parallel_size", "max_model_len", "max_num_seqs", "max_num_batched_tokens")
"""Settings that a command names whatever they are: the engine has other defaults for them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve: a model on a device under engine settings."""

    model: ModelSource
    """The model."""
    hardware: str
    """A device that `dooly hardware` lists, or a folder of such data."""
    serving: ServingConfig
    """The engine's settings."""
    interconnect: Interconnect | None = None
    """A link between ranks in place of measured collectives."""

    @property
    def num_gpus(self) -> int:
        """Devices that one engine takes."""
        return self.serving.tensor_parallel_size * self.serving.pipeline_parallel_size

    @property
    def command(self) -> str:
        """The `vllm serve` line with the settings that make a difference."""
        words = ["vllm", "serve", self.model.name]
        for field in fields(ServingConfig):
            value, flag = getattr(self.serving, field.name), field.name.replace("_", "-")
            if field.name not in _ALWAYS_NAMED and value == field.default:
                continue
            words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        return shlex.join(words)

    def digest(self) -> str:
        """Return 32 hexadecimal digits that name what a candidate's simulations depend on beside their requests."""
        link = None if self.interconnect is None else asdict(self.interconnect)
        found = [self.model.digest, self.hardware, asdict(self.serving), link]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]


def combine(
    models: Sequence[ModelSource],
    hardware: Sequence[str],
    choices: Mapping[str, Sequence[Any]],
    interconnect: Interconnect | None = None,
) -> tuple[Candidate, ...]:
    """Return every combination: model by model, then by hardware, then by the settings of `choices`, the last fastest.

    What `choices` leaves open is as `vllm serve` starts on the device.

    Raises:
        InvalidInputError: A setting is none of `ServingConfig`, has no value, or one that no engine takes; or there is no model
            or no hardware; or a model, a device or a value stands twice.
    """
    for name in choices:
        if name not in {field.name for field in fields(ServingConfig)}:
            raise InvalidInputError(f"search: choices: {name!r} is no setting of ServingConfig; see its fields")
    axes = {"models": models, "hardware": hardware, **choices}
    for name, values in axes.items():
        if not values or any(value in values[:place] for place, value in enumerate(values)):
            shown = ", ".join(str(getattr(value, "name", value)) for value in values)
            raise InvalidInputError(f"search: {name}: needs one value or more, each once, got {shown or 'none'}")
    return tuple(
        Candidate(model, device, default_serving(model, device, **dict(zip(choices, values, strict=True))), interconnect)
        for model, device, *values in product(*axes.values())
    )
