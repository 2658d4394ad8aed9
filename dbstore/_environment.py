"""The environment of a measurement: all that changes latency and is not in the signature."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING

from dbstore._errors import InvalidRecordError
from dbstore._json import JSON, JsonObject, canonical_json, digest

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHOICES = {"device_kind": ("cpu", "cuda"), "execution_mode": ("eager", "compiled", "cudagraph")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """All that changes latency beside the operation. Fields with a default came later, and are left out of documents where None.

    A document of a later version may have more fields still. They are kept and tell environments apart, so that what was measured
    in them is found and never mixed with the rest; a store that several versions share stays readable to all.

    Raises:
        InvalidRecordError: a text is empty, a count is below 1, or a choice is unknown.
    """

    device: str
    """Device name as its driver reports it, e.g. `NVIDIA H200`."""
    device_kind: str
    """`cpu` or `cuda`."""
    driver: str | None
    """Driver version; on a CPU the kernel release; None where who measured does not tell, as below."""
    torch_version: str | None
    """Version of torch."""
    engine: str
    """Serving engine, e.g. `vllm`."""
    engine_version: str
    """Version of the engine."""
    attention_backend: str | None
    """Attention backend as the engine names it."""
    dtype: str
    """Element type of activations, e.g. `bfloat16`."""
    kv_cache_dtype: str
    """Element type of the KV cache, e.g. `auto`."""
    block_size: int | None
    """Tokens in one KV-cache block."""
    execution_mode: str
    """`eager`, `compiled` or `cudagraph`."""
    quantization: str | None
    """Quantisation method; None where weights are not quantised."""
    num_threads: int | None
    """Threads that compute; None where the device decides."""
    cuda_version: str | None = None
    """Version of CUDA that torch was built for; None on a CPU."""
    clocks: str | None = None
    """The highest clocks and the power that the device may use; None where it does not tell."""
    host: str | None = None
    """Processor that launches the device's work; None where it is the device."""
    model_runner: str | None = None
    """Generation of the engine's model runner, where it has several."""
    source: str | None = None
    """Who measured, and under which licence, where it was another tool; None for what Dooly measured."""
    later: Mapping[str, JSON] = JsonObject({})
    """Fields of a later version, as its document has them; kept as a `JsonObject`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "later", JsonObject(self.later))
        if known := sorted(_KNOWN.keys() & self.later.keys()):
            raise InvalidRecordError(f"Environment.later: has {', '.join(known)}; give a known field by its own name")
        for name, annotation in _KNOWN.items():
            problem = _problem(name, annotation, getattr(self, name))
            if problem is not None:
                raise InvalidRecordError(f"Environment.{name}: {problem}, got {getattr(self, name)!r}")

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name this environment in a store."""
        return digest(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, JSON]:
        """Return the fields as a JSON object."""
        values = {name: getattr(self, name) for name in _KNOWN}
        return {name: value for name, value in values.items() if name in _REQUIRED or value is not None} | dict(self.later)

    @classmethod
    def from_json(cls, document: Mapping[str, JSON]) -> Environment:
        """Return the environment that `to_json` wrote, in this version or a later one.

        Raises:
            InvalidRecordError: a field is missing or invalid.
        """
        if lacking := sorted(_REQUIRED - set(document)):
            raise InvalidRecordError(f"Environment: document lacks {', '.join(lacking)}; give all of its fields")
        known = {name: document[name] for name in _KNOWN if name in document}
        return cls(**known, later={name: value for name, value in document.items() if name not in _KNOWN})


def _problem(name: str, annotation: str, value: object) -> str | None:
    if value is None:
        return None if annotation.endswith("None") else "must be given"
    if annotation.startswith("int"):
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return None if is_count else "must be an integer of at least 1"
    if not isinstance(value, str) or not value or value != value.strip():
        return "must be text, not empty and without blanks around it"
    choices = _CHOICES.get(name)
    return None if choices is None or value in choices else f"must be one of {', '.join(choices)}"


_KNOWN = {field.name: str(field.type) for field in fields(Environment) if field.name != "later"}
"""The fields that this version knows, with their types."""
_REQUIRED = {field.name for field in fields(Environment) if field.default is MISSING}
