"""Which model and how to serve it: the settings that every engine adapter reads. Holds no torch and no engine."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import resources
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError, ModelNotFoundError, spell
from dooly.kv_policy import KVPolicy
from dooly.speculation import SpeculativeConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

_NEAR = 0.7
"""How alike a name must be to a listed one, from 0 to 1, for that to be proposed."""

ENGINES = ("transformers", "vllm")
"""Names of the engines, sorted: each is a folder beside this file."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model by its configuration file."""

    name: str
    """Name to show."""
    folder: Path
    """Folder with a Hugging Face `config.json`."""

    @property
    def config(self) -> dict[str, Any]:
        """The parsed `config.json`."""
        return json.loads((self.folder / "config.json").read_text())  # type: ignore[no-any-return]

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the configuration that describes the text model: all of it, unless the file nests that part."""
        config = self.config
        nested: dict[str, Any] = config.get("text_config") or {}
        return config | nested

    @property
    def is_windowed(self) -> bool:
        """Whether some layers attend to a sliding window of tokens alone."""
        config = self.text_config
        return bool(config.get("sliding_window")) and bool(config.get("use_sliding_window", True))

    @property
    def max_model_len(self) -> int:
        """Longest sequence that the model is made for, in tokens, as vLLM takes it from the configuration."""
        config, rope = self.text_config, self._rope
        if _kind(rope) == "longrope":  # up to here short sequences are as good as without
            original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
            if original:
                return int(original)
        return self._stretched(self._stated_length or _UNKNOWN_LENGTH)

    def check_length(self, max_model_len: int) -> None:
        """Refuse a longest sequence that has more tokens than the model has positions, as vLLM does, and where vLLM does.

        Raises:
            InvalidInputError: It has, and the environment does not allow it.
        """
        if self._stated_length is None or max_model_len <= (longest := self._stretched(self._stated_length)):
            return
        if os.environ.get(_ALLOW_LONG, "").strip().lower() not in {"1", "true"}:
            raise InvalidInputError(
                f"--max-model-len: {max_model_len} is more than the {longest} positions that {self.name} has by its config.json; "
                f"give at most so many, or set {_ALLOW_LONG}=1, as vLLM asks for"
            )

    @property
    def _stated_length(self) -> int | None:
        config = self.text_config
        lengths = [config[key] for key in _LENGTH_KEYS if isinstance(config.get(key), int)]
        return config.get("model_max_length") or min(lengths, default=None)

    @property
    def _rope(self) -> dict[str, Any]:
        given = self.text_config.get("rope_parameters") or self.text_config.get("rope_scaling")
        return given if isinstance(given, dict) else {}

    def _stretched(self, length: int) -> int:
        """Return a length that the configuration says, longer by the factor of rotary embeddings that make it so."""
        # Layers under a window have positions of their own: the factor is of the others, whose length the configuration says.
        stretched = _kind(self._rope) in _STRETCHING and not self.is_windowed
        return int(length * ((self._rope.get("factor") or 1) if stretched else 1))

    @property
    def digest(self) -> str:
        """Digest of the configuration's content: 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:32]


def _kind(rope: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    return rope.get("rope_type", rope.get("type"))


_ALLOW_LONG = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_LENGTH_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
"""Where configurations say how long a sequence may be; the smallest counts, and `model_max_length` before all."""
_STRETCHING = {"linear", "dynamic", "ntk"}
"""Rotary embeddings by whose factor a model is longer than its configuration says; others have it in the length already."""
_UNKNOWN_LENGTH = 2048
"""Tokens, where a configuration says nothing."""
_KV_CACHE_BYTES = 1 << 30
_LARGEST_GRAPH = 512
_CHOICES = {
    "engine": ENGINES,
    "dtype": ("bfloat16", "float16", "float32"),
    "scheduling_policy": ("fcfs", "priority"),
}
"""Settings that are names, and which they may be."""


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """How an engine serves a model. Names are vLLM's own; the defaults suit a small machine.

    Examples:
        >>> dooly.ServingConfig(tensor_parallel_size=4, max_num_seqs=256).dtype
        'bfloat16'
    """

    dtype: str = "bfloat16"
    """Element type of weights and activations."""
    max_model_len: int = 2048
    """Longest sequence, prompt and output together, in tokens."""
    max_num_batched_tokens: int = 2048
    """Most tokens that one step computes."""
    max_num_seqs: int = 64
    """Most requests that one step works on."""
    kv_cache_memory_bytes: int | None = None
    """Size of the KV cache, in bytes; None for 1 GiB on this machine, and on a device whose measurements ship with Dooly for what
    its memory has room for."""
    num_gpu_blocks_override: int | None = None
    """Blocks of the KV cache, in place of what memory has room for."""
    gpu_memory_utilization: float = 0.92
    """Share of a device's memory that weights, activations and KV cache may take together; on this machine 0.3 is used."""
    tensor_parallel_size: int = 1
    """Ranks that share each layer."""
    pipeline_parallel_size: int = 1
    """Ranks that each run a part of the layers."""
    enable_expert_parallel: bool = False
    """Whether the tensor-parallel ranks share the experts of a mixture whole, instead of sharing each expert."""
    quantization: str | None = None
    """How weights are quantised, by the engine's name, such as `fp8`; None for what the model's configuration says."""
    kv_cache_dtype: str = "auto"
    """Element type of the KV cache, by the engine's name, such as `fp8`; `auto` for what the model's configuration says."""
    enable_prefix_caching: bool = True
    """Whether a simulated engine keeps the tokens that it has computed, and computes none again that prompts share. What Dooly
    measures never comes from a cache."""
    attention_backend: str | None = None
    """Attention backend by the engine's name; None lets the engine choose."""
    moe_backend: str = "auto"
    """Kernels of mixtures of experts, by the engine's name, such as `marlin`; `auto` lets the engine choose."""
    max_cudagraph_capture_size: int | None = None
    """Tokens of the largest step that is captured in a CUDA graph; None for twice `max_num_seqs`, and 512 at most."""
    enforce_eager: bool | None = None
    """Whether the engine runs its model module by module. False compiles the model on a CPU, and runs CUDA graphs on a GPU; None
    is eager on a CPU, and CUDA graphs on a GPU."""
    async_scheduling: bool = True
    """Whether a GPU's engine schedules a step while another runs; on a CPU it does not."""
    scheduling_policy: str = "fcfs"
    """Whom a simulated engine serves first, and preempts last: `fcfs`, who came first; `priority`, whose `priority` is lower."""
    max_num_active_seqs: int | None = None
    """Most requests that run at once in a simulated engine, where they shall be fewer than `max_num_seqs`."""
    max_num_scheduled_tokens: int | None = None
    """Most tokens that one step of a simulated engine computes, where they shall be fewer than `max_num_batched_tokens`."""
    long_prefill_token_threshold: int = 0
    """Most tokens of one prompt in a step of a simulated engine while there are others; 0 sets no such limit."""
    long_prefill_token_threshold_adaptive: bool = False
    """Whether that limit is never below a request's fair share of `max_num_batched_tokens`."""
    enable_chunked_prefill: bool = True
    """Whether a simulated engine computes a prompt over several steps to fit them."""
    scheduler_reserve_full_isl: bool = True
    """Whether a simulated engine admits a request only if its whole prompt fits in the free blocks, not just the first chunk."""
    watermark: float = 0.0
    """Fraction of the KV blocks that a simulated engine keeps free when it admits a request beside others, below 1."""
    speculative_config: SpeculativeConfig | None = None
    """How a simulated engine drafts tokens, and how many it accepts; None where it drafts none, as where Dooly measures."""
    kv_policy: KVPolicy | None = None
    """What a simulated engine keeps of prompts, or computes of their attention; None for all. A latency model's `step` prices the
    batch that it is given, and knows no policy."""
    engine: str = "vllm"
    """Which engine serves, of those that `--engine` takes; names of other settings are vLLM's, whichever it is."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (chosen := getattr(self, name)) not in known:
                raise InvalidInputError(f"--{name.replace('_', '-')}: {spell(chosen)} is not one of {', '.join(known)}")
        for field in fields(self):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if str(field.type).startswith("bool") and not isinstance(value, bool) and (value is not None or field.type == "bool"):
                raise InvalidInputError(f"{flag}: {spell(value)} is neither True nor False")
            if str(field.type).startswith("int") and value is not None:
                if isinstance(value, bool) or not isinstance(value, Integral):
                    raise InvalidInputError(f"{flag}: {spell(value)} is no whole number")
                least = 0 if field.default == 0 else 1
                if value < least:
                    raise InvalidInputError(f"{flag}: {value} is not at least {least}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise InvalidInputError(f"--gpu-memory-utilization: {self.gpu_memory_utilization} does not lie above 0 and up to 1")
        self._check_kinds()

    def _check_kinds(self) -> None:
        for name, kind in (("speculative_config", SpeculativeConfig), ("kv_policy", KVPolicy)):
            if not isinstance(value := getattr(self, name), kind | None):
                raise InvalidInputError(
                    f"--{name.replace('_', '-')}: {spell(value)} is none; give a {kind.__module__}.{kind.__name__}"
                )

    @property
    def kv_cache_bytes(self) -> int:
        """Size of the KV cache on this machine, in bytes."""
        return _KV_CACHE_BYTES if self.kv_cache_memory_bytes is None else self.kv_cache_memory_bytes

    @property
    def cudagraph_capture_sizes(self) -> tuple[int, ...]:
        """Tokens of the steps that vLLM captures in CUDA graphs, growing; smaller steps are padded to the next."""
        per_request = self.num_sampled_per_request
        ceiling = self.max_cudagraph_capture_size or min(2 * self.max_num_seqs * per_request, _LARGEST_GRAPH)
        sizes = {1, 2, 4, *range(8, 256, 8), *range(256, ceiling + 1, 16), self.max_num_batched_tokens}
        if per_request > 1 and self.max_cudagraph_capture_size is None:
            most = min(self.max_num_seqs, _LARGEST_GRAPH)
            counts = {count for count in (1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16), most) if count <= most}
            sizes |= {count * per_request for count in counts}
        elif per_request == 1:
            sizes.add(self.max_num_seqs)
        return tuple(sorted(size for size in sizes if size <= min(ceiling, self.max_num_batched_tokens)))

    @property
    def num_sampled_per_request(self) -> int:
        """Places of a request that a step samples a token at: the last, and each draft that it verifies."""
        return 1 if self.speculative_config is None else 1 + self.speculative_config.num_speculative_tokens

    @property
    def schedules_ahead(self) -> bool:
        """Whether a GPU's engine schedules a step while another runs: not with drafts that it must know first."""
        return self.async_scheduling and (self.speculative_config is None or self.speculative_config.allows_async_scheduling)

    def require_one_rank(self) -> None:
        """Refuse a parallel layout where several ranks would have to run.

        Raises:
            InvalidInputError: A step takes more than one rank.
        """
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if getattr(self, name) > 1:
                flag = f"--{name.replace('_', '-')}"
                raise InvalidInputError(
                    f"{flag}: {getattr(self, name)} ranks can be traced but not measured yet; use 1, or simulate with --hardware "
                    "or imported records"
                )


def serving_as_asked(model: ModelSource, settings: Mapping[str, Any]) -> ServingConfig:
    """Return the settings that somebody gave for a model; what was not given is as in `ServingConfig`.

    Raises:
        InvalidInputError: One makes no sense, or `max_model_len` was given beyond the model's positions, which vLLM refuses.
    """
    serving = ServingConfig(**settings)
    if "max_model_len" in settings and serving.engine == "vllm":
        model.check_length(serving.max_model_len)
    return serving


def find_model(model: str) -> ModelSource:
    """Return the model that MODEL names: a folder with a `config.json`, or a name from `listed_models`.

    Raises:
        ModelNotFoundError: It is neither.
        InvalidInputError: The `config.json` is not a JSON object that names an architecture, or a part of it is no object.

    Examples:
        >>> dooly.find_model("llama-3.1-8b").name
        'llama-3.1-8b'
    """
    folder = Path(model)
    if not (folder / "config.json").is_file() and model in (listed := {m.name: m for m in listed_models()}):
        return listed[model]
    if not folder.is_dir() and "," in str(model):
        raise ModelNotFoundError(f"MODEL: {model!r} is no name; write several models with spaces between them, without commas")
    if not folder.is_dir():
        near = get_close_matches(str(model).rpartition("/")[2].lower(), [m.name for m in listed_models()], 1, _NEAR)
        hint = "".join(f", or take {name}" for name in near)
        raise ModelNotFoundError(f"MODEL: {model!r} is neither a folder nor a listed name; see `dooly models`{hint}")
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"MODEL: {model} holds no config.json; give a folder with a Hugging Face config.json")
    source = ModelSource(folder.resolve().name, folder.resolve())
    try:
        config = source.config
    except ValueError as error:
        raise InvalidInputError(f"{folder / 'config.json'}: not valid JSON ({error}); fetch the file again") from error
    _check_parts(folder / "config.json", config)
    return source


def _check_parts(path: Path, config: Any) -> None:  # noqa: ANN401 - JSON
    """Check what is read of a configuration before any engine sees it."""
    architectures = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(architectures, list) or not architectures or not all(isinstance(name, str) for name in architectures):
        raise InvalidInputError(f"{path}: names no architecture; add a list `architectures`")
    for name in ("text_config", "quantization_config"):
        if (part := config.get(name)) is not None and not isinstance(part, dict):
            raise InvalidInputError(f"{path}: {name}: {spell(part)} is no JSON object; correct it, or take it out")


def listed_models() -> tuple[ModelSource, ...]:
    """Return the models whose configurations ship with Dooly, by name."""
    root = Path(str(resources.files("dooly") / "models"))
    return tuple(ModelSource(f.name, f) for f in sorted(root.iterdir()) if (f / "config.json").is_file())
