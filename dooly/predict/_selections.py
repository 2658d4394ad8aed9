"""What a KV-cache policy's scoring and choosing takes when a prompt has been computed: measured, or by what its kernels move."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from dbstore import Environment
from dooly.catalog import read_selection
from dooly.errors import MissingOperationError, UnsupportedModelError
from dooly.kv_policy import NUM_DENSE_LAYERS, SEGMENT_SIZE, HeadSizes
from dooly.predict._fit_module import load_module_latency
from dooly.tracing import evaluate_form, layer_of

if TYPE_CHECKING:
    from dbstore import Store
    from dooly.kv_policy import KVPolicy
    from dooly.predict._hardware import Hardware
    from dooly.predict._module_latency import ModuleLatency
    from dooly.predict._sources import Source
    from dooly.tracing import TracedModel


_MEASURED_DTYPE = "float32"
"""Element type that `dooly kv profile` measures in."""


def head_sizes(traced: TracedModel) -> tuple[HeadSizes, int]:
    """Return the sizes of a model's attention on one rank, and how many layers have it.

    Raises:
        UnsupportedModelError: Its layers attend in different ways, or have no keys and values for each head.
    """
    layers = [op for op in traced.operations if op.depends_on_context]
    shapes = {tuple(op.attributes.get(name, 0) for name in ("num_heads", "num_kv_heads", "head_size")) for op in layers}
    plain = all(op.attributes.get("kind") == "Attention" and op.attributes.get("sliding_window") in {None, -1} for op in layers)
    outside = [op for op in traced.operations if op.stage == "decoder" and layer_of(op.module) is None]
    if not plain or len(shapes) != 1 or not outside:
        raise UnsupportedModelError(
            f"--kv-policy: {traced.model}: simulated only where all layers attend to all tokens, with keys and values for "
            "each head; leave it out"
        )
    (num_heads, num_kv_heads, head_dim), *_ = shapes
    hidden_size = max(op.outputs[0].shape[-1].value or 0 for op in outside)
    return HeadSizes(num_heads, num_kv_heads, head_dim, hidden_size), sum(op.count for op in layers)


class SelectionLatency(NamedTuple):
    """What selecting takes for one prompt, over all layers."""

    ns: float
    """Nanoseconds."""
    source: Source
    """Where they are from."""
    extrapolated: bool = False
    """Whether no selection was measured whose prompt is as long, or none whose prompt is as short."""


@dataclass(frozen=True)
class Selections:
    """Prices the selections of policies for one model."""

    traced: TracedModel
    """The model."""
    environment: Environment
    """Where the model's latencies are from: a selection that was measured elsewhere does not count."""
    hardware: Hardware | None = None
    """Facts of the device, for estimates; None where nobody knows them."""
    store: Store | None = None
    """Where selections may have been measured."""
    _measured: dict[KVPolicy, ModuleLatency | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def latency(self, policy: KVPolicy, num_tokens: int, num_found_tokens: int = 0) -> SelectionLatency:
        """Return what selecting takes for a prompt of so many tokens, over all layers.

        A policy that selects while it prefills does so for the segments that are computed, each by all blocks of keys: where
        `num_found_tokens` were found in the prefix cache, the share of the others counts. What was measured in another element
        type than the model's is an estimate.

        Raises:
            MissingOperationError: It was not measured, and nothing tells what the device moves.
            UnsupportedModelError: The model's attention has no heads that a policy chooses for.
        """
        sizes, num_layers = head_sizes(self.traced)
        layers = num_layers - (NUM_DENSE_LAYERS if policy.scope is None else 0)
        if (own := self._own(policy, sizes)) is not None:
            found = own(num_tokens=num_tokens, extrapolate=True)
            source: Source = "measured" if self.environment.dtype == _MEASURED_DTYPE else "estimated"
            return SelectionLatency(layers * 1e9 * found.seconds, source, found.extrapolated)
        if self.hardware is None:
            raise MissingOperationError(
                f"--kv-policy: nobody measured what selecting by {policy} takes for {self.traced.model} on "
                f"{self.environment.device}; {self._next_step(policy)}"
            )
        computed = 1.0 if policy.scope is not None else 1 - num_found_tokens / num_tokens
        ns = estimate_ns(policy, sizes, num_tokens, self.hardware, self.environment.dtype)
        return SelectionLatency(computed * layers * ns, "estimated")

    def _own(self, policy: KVPolicy, sizes: HeadSizes) -> ModuleLatency | None:
        """Return what was measured of a policy's selection on the device, None where nothing was."""
        if policy not in self._measured:
            own = None if self.store is None else selection_latency(self.store, policy, sizes, self.environment)
            self._measured[policy] = own
        return self._measured[policy]

    def _next_step(self, policy: KVPolicy) -> str:
        """Say what to do where nothing tells what a selection takes: `dooly kv profile` measures on CPUs, what drops tokens."""
        if self.environment.device_kind != "cpu" or policy.scope is None:
            return "leave it out, or simulate a device that `dooly hardware` lists with --hardware"
        return (
            f"run `dooly kv profile {self.traced.model} --db PATH --policy {policy.name} --budget {policy.budget:g}` there, with "
            "the same --tensor-parallel-size"
        )


def selection_latency(store: Store, policy: KVPolicy, sizes: HeadSizes, environment: Environment) -> ModuleLatency | None:
    """Return what a store holds of a policy's selection in one layer, by `dooly kv profile`; None where it holds nothing.

    Args:
        store: An open store.
        policy: The policy at its budget.
        sizes: The sizes of attention.
        environment: What it is to stand beside: one measured on its device is taken, the most alike in driver, torch and threads.
    """
    found = [
        (traced, Environment.from_json(store.read_document("environments", digest)))
        for traced, digest in read_selection(store, policy, sizes)
    ]
    own = [each for each in found if each[1].device == environment.device]
    if not own:
        return None
    traced, measured = max(own, key=lambda each: (_likeness(each[1], environment), each[1].digest))
    return load_module_latency(traced, store, measured)


def _likeness(one: Environment, other: Environment) -> int:
    return sum(getattr(one, name) == getattr(other, name) for name in ("driver", "torch_version", "num_threads"))


class SelectionWork(NamedTuple):
    """What the kernels of a selection in one layer do."""

    kernels: float
    """Their number."""
    bytes: float
    """What they read and write."""
    bfloat16_flops: float = 0.0
    """FLOPs of products in bfloat16, or in another type of two bytes."""
    float32_flops: float = 0.0
    """FLOPs of products in float32."""


def selection_work(policy: KVPolicy, sizes: HeadSizes, num_tokens: int, dtype: str = "bfloat16") -> SelectionWork:
    """Return what a selection in one layer does, by the closed forms that traces of it give.

    Args:
        policy: The policy at its budget.
        sizes: The sizes of attention.
        num_tokens: Tokens of the prompt.
        dtype: Element type of queries, keys and values; any but float32 counts as one of two bytes.
    """
    segments = (num_tokens - 1) // SEGMENT_SIZE
    # What the segments between the first tokens and the last segment choose of earlier keys.
    gathered = sum(keys for _, keys in policy.attended(num_tokens, 0, num_tokens)[1:-1])
    values = sizes._asdict() | {"num_tokens": num_tokens, "num_segments": segments, "num_gathered_tokens": gathered}
    forms = _forms()[policy.name]["float32" if dtype == "float32" else "bfloat16"]
    return SelectionWork(**{name: float(evaluate_form(form, values)) for name, form in forms.items()})


def estimate_ns(policy: KVPolicy, sizes: HeadSizes, num_tokens: int, hardware: Hardware, dtype: str = "bfloat16") -> float:
    """Return what a selection in one layer takes by its launches, bytes and FLOPs one after the other, in nanoseconds."""
    work = selection_work(policy, sizes, num_tokens, dtype)
    multiplied_s = work.bfloat16_flops / hardware.flops_per_s
    multiplied_s += work.float32_flops / (hardware.float32_flops_per_s or hardware.flops_per_s)
    return hardware.launch_ns * work.kernels + 1e9 * (work.bytes / hardware.moved_bytes_per_s + multiplied_s)


@cache
def _forms() -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = json.loads(
        (resources.files("dooly") / "data" / "kv_selections.json").read_text()
    )
    return found
