"""What is searched: models on devices under engine settings, each combination a candidate."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from dooly.engines import ModelSource, ServingConfig, hub_id
from dooly.errors import InvalidInputError
from dooly.kv_policy import Term
from dooly.predict import default_serving
from dooly.simulation import FleetLayout
from dooly.speculation import DRAFTER_METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dooly.predict import Interconnect

ONE_ENGINE = FleetLayout()
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
    fleet: FleetLayout = ONE_ENGINE
    """How many engines, and how requests come to them."""
    host_slowdown: float | None = None
    """How many times as long its host takes to launch a step as the one that was measured; None for as long."""

    @property
    def num_gpus(self) -> int:
        """Devices that all engines take."""
        return self.serving.tensor_parallel_size * self.serving.pipeline_parallel_size * self.fleet.num_replicas

    @property
    def command(self) -> str:
        """The `vllm serve` line with the settings that make a difference; behind it, what is more than one such line.

        A listed model stands there by its maker's Hugging Face id; of others, the reader knows where the weights are.
        """
        serving = self.serving
        if serving.kv_policy is not None and serving.kv_policy.changes(Term.CACHING):
            serving = replace(serving, enable_prefix_caching=False)
        words = ["vllm", "serve", hub_id(self.model) or f"<folder or Hugging Face id of {self.model.name}>"]
        for field in fields(ServingConfig):
            value, flag = getattr(serving, field.name), field.name.replace("_", "-")
            if field.name == "kv_policy" or (field.name not in _ALWAYS_NAMED and value == field.default):
                continue
            words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        fleet, remark = self.fleet, ""
        if fleet.is_disaggregated:
            words += ["--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}']
            remark = f"  # {fleet.prefill_replicas} to prefill and {fleet.decode_replicas} to decode, behind a proxy"
        elif fleet.num_replicas > 1 and fleet.router_name == "vllm":
            words += ["--data-parallel-size", str(fleet.num_replicas)]
        elif fleet.num_replicas > 1:
            remark = f"  # {fleet.num_replicas} of these, behind a router: {fleet.router_name}"
        drafts = serving.speculative_config
        if drafts is not None and drafts.method in DRAFTER_METHODS:
            remark += f"{',' if remark else '  #'} with the drafter as model in --speculative-config"
        if serving.kv_policy is not None:
            remark += f"{',' if remark else '  #'} with {serving.kv_policy}, which vLLM lacks"
        return f"{shlex.join(words)}{remark}"

    def shown(self, name: str) -> str:
        """Return a setting as text, by its name in `ServingConfig`, or `engines`; `none` as the command line takes it."""
        if name == "engines":
            return self.fleet.label
        value = getattr(self.serving, name)
        return "none" if value is None else str(value)

    def digest(self) -> str:
        """Return 32 hexadecimal digits that name what a candidate's simulations depend on beside their requests."""
        link = None if self.interconnect is None else asdict(self.interconnect)
        found: list[Any] = [self.model.digest, self.hardware, asdict(self.serving), link, asdict(self.fleet)]
        found += [] if self.host_slowdown is None else [self.host_slowdown]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]


def combine(  # noqa: PLR0913, PLR0917 - what candidates are made of
    models: Sequence[ModelSource],
    hardware: Sequence[str],
    choices: Mapping[str, Sequence[Any]],
    interconnect: Interconnect | None = None,
    fleets: Sequence[FleetLayout] = (ONE_ENGINE,),
    host_slowdown: float | None = None,
) -> tuple[Candidate, ...]:
    """Return every combination: by model, then by hardware, by the settings of `choices`, and by fleet, the last fastest.

    What `choices` leaves open is as `vllm serve` starts on the device.

    Raises:
        InvalidInputError: A setting is none of `ServingConfig`, has no value, or one that no engine takes; or there is no model
            or no hardware; or a model, a device or a value stands twice.
    """
    for name in choices:
        if name not in {field.name for field in fields(ServingConfig)}:
            raise InvalidInputError(f"search: choices: {name!r} is no setting of ServingConfig; see its fields")
    axes = {"models": models, "hardware": hardware, **choices, "fleets": fleets}
    for name, values in axes.items():
        if not values or any(value in values[:place] for place, value in enumerate(values)):
            shown = ", ".join(str(getattr(value, "name", value)) for value in values)
            raise InvalidInputError(f"search: {name}: needs one value or more, each once, got {shown or 'none'}")
    return tuple(
        Candidate(
            *(model, device, _serving(model, device, dict(zip(choices, values, strict=True)))),
            *(interconnect, fleet, host_slowdown),
        )
        for model, device, *values, fleet in product(*axes.values())
    )


def _serving(model: ModelSource, hardware: str, settings: dict[str, Any]) -> ServingConfig:
    """Return a candidate's settings; sequences longer than its model takes are its own fault, and no other model's."""
    longest = settings.get("max_model_len")
    try:
        return default_serving(model, hardware, **settings)
    except InvalidInputError:
        if not isinstance(longest, int) or longest <= model.max_model_len:
            raise
        fitting = default_serving(model, hardware, **settings | {"max_model_len": model.max_model_len})
        return replace(fitting, max_model_len=longest)
