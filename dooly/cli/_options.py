"""Arguments and options that several commands share."""

from __future__ import annotations

import inspect
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from dooly.engines import ENGINES, ServingConfig
from dooly.speculation import SpeculativeConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_HELP = {
    "engine": f"Which engine serves: {' or '.join(ENGINES)}.",
    "dtype": "Element type of weights and activations.",
    "max_model_len": "Longest sequence, prompt and output together, in tokens.",
    "max_num_batched_tokens": "Most tokens that one step computes.",
    "max_num_seqs": "Most requests that one step works on.",
    "kv_cache_memory_bytes": "Size of the KV cache, in bytes: by default 1 GiB, on a listed device what memory has room for.",
    "num_gpu_blocks_override": "Blocks of the KV cache, in place of what memory has room for.",
    "gpu_memory_utilization": "Share of a device's memory for weights, activations and KV cache; counts for listed devices.",
    "tensor_parallel_size": "Ranks that share each layer.",
    "pipeline_parallel_size": "Ranks that each run a part of the layers.",
    "enable_expert_parallel": "Share whole experts over the tensor-parallel ranks, instead of parts of each.",
    "quantization": "How to quantise the weights, as fp8, by the engine's name; by default as the model's configuration says.",
    "kv_cache_dtype": "Element type of the KV cache, as fp8, by the engine's name; auto is what the model's configuration says.",
    "enable_prefix_caching": "Compute prompts anew that begin as others did, and those that were preempted.",
    "attention_backend": "Attention backend by the engine's name; by default the engine chooses.",
    "moe_backend": "Kernels of mixtures of experts, as marlin, by the engine's name; counts with --hardware.",
    "max_cudagraph_capture_size": "Tokens of the largest step in a CUDA graph; by default twice --max-num-seqs, and 512 at most.",
    "enforce_eager": "The engine without CUDA graphs, which your own records of a GPU tell, no listed device; on a CPU always.",
    "scheduling_policy": "Who is served first: fcfs, who came first; priority, whose is lower in the workload file's column.",
    "max_num_active_seqs": "Most requests that run at once, where fewer than --max-num-seqs.",
    "max_num_scheduled_tokens": "Most tokens scheduled for one step, where fewer than --max-num-batched-tokens.",
    "enable_chunked_prefill": "Compute each prompt in one step.",
    "watermark": "Fraction of the KV blocks kept free when a request is admitted beside others.",
    "async_scheduling": "A GPU's engine schedules a step only when the one before has run.",
}


LIMITS = ("max_model_len", "max_num_batched_tokens", "max_num_seqs")
"""Settings whose default is another on a GPU."""

_SCHEDULE = ("scheduling_policy", "max_num_active_seqs", "max_num_scheduled_tokens", "enable_chunked_prefill", "watermark")
"""Settings of the schedule."""
_WITHOUT_FLAG = (
    *("speculative_config", "kv_policy", "long_prefill_token_threshold", "long_prefill_token_threshold_adaptive"),
    "scheduler_reserve_full_isl",
)
"""Settings without a flag of their name: several make up one, or no help of 80 columns has room for it."""

SIMULATE_ONLY = ("enable_prefix_caching", "moe_backend", *_SCHEDULE)
"""Settings of an engine that serves, which measuring and comparing with one turn off."""


def writable(path: Path | None) -> Path | None:
    """Refuse an output file that cannot be made, before the work that fills it."""
    if path == Path("-"):
        raise typer.BadParameter("- is no file, and only JSON goes to stdout; give a file, or use --json -")
    return writable_or_stdout(path)


def writable_or_stdout(path: Path | None) -> Path | None:
    """Refuse an output file that cannot be made; `-` is stdout."""
    if path is not None and path != Path("-") and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{path} is a folder or lies in none; give a file in a folder that exists")
    if (
        path is not None and path != Path("-") and (path.is_file() or not path.exists())
    ):  # no device or pipe, which opening might end
        file = path.resolve()  # where a link leads: the link itself stays
        is_new = not file.exists()
        try:
            file.open("ab").close()
            if is_new:
                file.unlink()
        except OSError as error:
            raise typer.BadParameter(f"{path} cannot be written ({error.strerror}); give another file") from error
    return path


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder with a config.json, or a name that `dooly models` lists.")]
Database = Annotated[str, typer.Option("--db", metavar="PATH", help="Latency store: a folder or an fsspec URL.")]
OptionalDatabase = Annotated[str | None, typer.Option("--db", metavar="PATH", help="Latency store: a folder or an fsspec URL.")]
HardwareName = Annotated[
    str | None,
    typer.Option("--hardware", metavar="NAME", help="A device that `dooly hardware` lists, in place of a store."),
]
InterconnectText = Annotated[
    str | None,
    typer.Option(
        "--interconnect",
        metavar="SPEC",
        help="A link between ranks in place of measured collectives, as bandwidth=16,latency=20 (GB/s, us); for listed devices "
        "and imported records.",
    ),
]
HostSlowdown = Annotated[
    float | None,
    typer.Option(
        "--host-slowdown",
        metavar="FACTOR",
        help="How many times as long the engine's host takes to launch a step as the one measured beside an H200.",
    ),
]
WorkloadText = Annotated[
    str,
    typer.Option(
        "--workload",
        metavar="SPEC|FILE",
        help="As poisson:rate=2,prompt=512,output=8-256, also with requests=100, seed=0, prefix=256, turns=2-5; "
        "closed:concurrency=32,... for users who wait for their answers; gamma, constant, sharegpt, trace; or a workload file.",
    ),
]
BatchText = Annotated[
    str,
    typer.Option(
        "--batch",
        metavar="SPEC",
        help="Step to show FLOPs and bytes for, as decode=8,context=1024 or prefill=512,requests=2, joined by +.",
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=writable_or_stdout, help="Write JSON; - writes it to stdout, and no table."),
]
CsvFile = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", callback=writable, help="Write the times, one row a request.")
]
RealFile = Annotated[
    Path | None,
    typer.Option(
        "--real", metavar="FILE", help="Compare with runs that benchmarks/ground_truth.py kept, under their engine flags."
    ),
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", callback=writable, help="Write a page with charts that needs no network.")
]


_DRAFTING = "Speculative decoding"
SpeculativeText = Annotated[
    str | None,
    typer.Option(
        "--speculative-config",
        metavar="JSON",
        help='Draft tokens, as vLLM takes it: {"method": "ngram", "num_speculative_tokens": 3}; ngram, ngram_gpu, eagle, eagle3, '
        "mtp.",
        rich_help_panel=_DRAFTING,
    ),
]
AcceptanceText = Annotated[
    str | None,
    typer.Option(
        "--acceptance-rate",
        metavar="RATE,...",
        help="How often a draft is accepted where those before it are, as 0.7; or by position, as "
        "vllm bench prints it, 0.8,0.6,0.4.",
        rich_help_panel=_DRAFTING,
    ),
]
DraftCost = Annotated[
    float | None,
    typer.Option(
        "--draft-cost",
        metavar="FRACTION",
        help="What a pass of the drafter takes, as a fraction of the model's step; not for ngram.",
        rich_help_panel=_DRAFTING,
    ),
]


def drafting(text: str | None, acceptance_rate: str | None, draft_cost: float | None) -> dict[str, SpeculativeConfig]:
    """Return the engine setting that these three options make; none where no tokens are drafted."""
    if text is not None:
        return {"speculative_config": SpeculativeConfig.parse(text, acceptance_rate, draft_cost)}
    for flag, value in (("--acceptance-rate", acceptance_rate), ("--draft-cost", draft_cost)):
        if value is not None:
            raise typer.BadParameter(f"{flag}: no tokens are drafted; give --speculative-config too")
    return {}


def engine_flags(
    *only: str, without: Collection[str] = (), unset: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: give it a flag for each engine setting, under vLLM's name.

    The command takes `serving: ServingConfig`, or where some may stay unset, `settings: dict[str, Any]` of those that are set.

    Args:
        only: The settings to offer; all if none is named.
        without: Settings to leave out.
        unset: Settings that have no value unless one is given.
    """
    settings = [name for name in _DEFAULTS if (not only or name in only) and name not in without]
    flags = {name: _flag(name, has_default=name not in unset) for name in settings}

    def set_only(given: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name not in unset or value is not None}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        if unset:
            return _with_flags(command, "settings", flags, set_only)
        return _with_flags(command, "serving", flags, lambda given: ServingConfig(**given))

    return decorate


def engine_choices(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command that takes `choices: dict[str, tuple]`: the same flags, each of which may take several values.

    The command gets those that are given. Flags that turn something on or off stay as they are.
    """
    switches = {name for name, default in _DEFAULTS.items() if isinstance(default, bool)} | set(_CHOSEN)
    # What ships of devices is of one engine.
    names = [name for name in _DEFAULTS if name != "engine"]
    flags = {name: _flag(name, has_default=True) if name in switches else _several(name) for name in names}

    def chosen(given: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        turned = {name: (given.pop(name),) for name in switches}
        several = {name: values for name, values in given.items() if values is not None}
        return several | {name: values for name, values in turned.items() if values != (_DEFAULTS[name],)}

    return _with_flags(command, "choices", flags, chosen)


def _with_flags(
    command: Callable[..., None], argument: str, flags: dict[str, inspect.Parameter], made: Callable[[dict[str, Any]], Any]
) -> Callable[..., None]:
    """Return a command that has flags in place of an argument, which is made of their values by setting."""
    off = {name: _off_flag(name) for name in flags if name in _CHOSEN}

    @wraps(command)
    def run(**values: Any) -> None:  # noqa: ANN401 - each command has its own
        given: dict[str, Any] = {name: values.pop(flag.name) for name, flag in flags.items()}
        for name, flag in off.items():
            if values.pop(flag.name):
                if given[name]:
                    raise typer.BadParameter(f"--{name.replace('_', '-')} and --no-{name.replace('_', '-')} exclude each other")
                given[name] = False
        given |= {name: not given[name] for name in _ON & given.keys()}
        command(**values, **{argument: made(given)})

    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != argument]
    added = [*flags.values(), *off.values()]
    run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    return run


def _off_flag(setting: str) -> inspect.Parameter:
    """Return the flag that turns a setting off which neither is on nor off by itself."""
    flag = f"--no-{setting.replace('_', '-')}"
    option = typer.Option(False, flag, help=_CHOSEN[setting], rich_help_panel="Engine")  # noqa: FBT003 - typer's default
    return inspect.Parameter(f"no_{setting}", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=bool)


def _flag(setting: str, *, has_default: bool) -> inspect.Parameter:
    # One name, that of what is not the default: a second column of names leaves no room at 80 columns.
    name = f"no_{setting}" if setting in _ON else setting
    default = False if setting in _ON else _DEFAULTS[setting] if has_default else None
    text = (
        _HELP[setting] if has_default else f"{_HELP[setting]} By default {_DEFAULTS[setting]}, or with --hardware as vllm serve."
    )
    panel = "Schedule" if setting in _SCHEDULE else "Engine"
    option = typer.Option(default, f"--{name.replace('_', '-')}", help=text, rich_help_panel=panel)
    annotation = get_type_hints(ServingConfig)[setting]
    annotation = annotation if has_default else annotation | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _several(setting: str) -> inspect.Parameter:
    """Return the flag of a setting that takes values with commas between them, and gives them as a tuple.

    Where a setting may have no value, as `quantization`, `none` is among them.
    """
    hint = get_type_hints(ServingConfig)[setting]
    nothing = {"none": None} if type(None) in get_args(hint) else {}
    kind: Callable[[str], Any] = next((kind for kind in (int, float) if kind in {hint, *get_args(hint)}), str)

    def parse(text: str | None) -> tuple[Any, ...] | None:
        try:
            values = [] if text is None else [value.strip() for value in text.split(",")]
            return tuple(nothing[value] if value in nothing else kind(value) for value in values) or None
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} must be numbers with commas between them") from error

    default = "as vllm serve" if setting in LIMITS else _DEFAULTS[setting]
    option = typer.Option(
        None,
        f"--{setting.replace('_', '-')}",
        metavar="VALUE,...",
        help=_HELP[setting],
        callback=parse,
        show_default=False if default is None else str(default),
        rich_help_panel=f"{'Schedule' if setting in _SCHEDULE else 'Engine'}; values with commas between them are all tried",
    )
    return inspect.Parameter(setting, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=str | None)


_DEFAULTS = {field.name: field.default for field in fields(ServingConfig) if field.name not in _WITHOUT_FLAG}
_CHOSEN = {"enforce_eager": "On a CPU: the engine compiles the model, as vllm serve does there."}
"""Settings whose default is another on each device: a second flag turns them off."""
_ON = {name for name, default in _DEFAULTS.items() if default is True}
"""Settings whose flag turns them off."""
