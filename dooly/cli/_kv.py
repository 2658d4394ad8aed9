"""`dooly kv`: what KV-cache and prefill policies do to the output of attention."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dooly.cli._options import Database, HtmlFile, JsonFile, Model  # noqa: TC001 - typer reads the annotations
from dooly.cli._output import new_table, progress_bar, show, write_json
from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dooly.engines import ModelSource
    from dooly.kv import AttentionShape, CritiPrefill, OutputError, Policy

kv = typer.Typer(name="kv", help="What KV-cache and prefill policies do to the output of attention, and what selecting takes.")

_NUM_LATER = 64
"""Tokens that follow a prompt, whose error is measured."""
_NUM_LAYERS = 4
"""Layers that are made by default, where a model has as many."""


@contextmanager
def _naming_flags() -> Iterator[None]:
    """Have messages that begin with an argument of the library begin with the flag that gave it."""
    try:
        yield
    except InvalidInputError as error:
        if str(error).startswith(("policy: ", "budget: ")):
            raise InvalidInputError(f"--{error}") from error
        raise


@kv.command()
@_naming_flags()
def error(  # noqa: PLR0913 - one argument an option
    model: Model,
    *,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Policies, as snapkv or laprox (after its paper's abstract); by default all.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="SHARE,...", help="Shares of a prompt's tokens that are kept.")
    ] = "0.05,0.1,0.2,0.5",
    num_tokens: Annotated[str, typer.Option(metavar="N,...", help="Lengths of prompts.")] = "2048",
    layers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Layers of the model that is made; not more than it has.",
            show_default=f"{_NUM_LAYERS}, or all where it has fewer",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Number of weights and texts.")] = 3,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
) -> None:
    """Show the error of attention's output under policies, against whole attention.

    A Llama with MODEL's attention sizes, seeded weights and unlike heads computes prompts and the 64 tokens after them.
    """
    from dooly.engines import find_model
    from dooly.kv import POLICIES, AttentionShape, find_policy

    source = find_model(model)
    shape = AttentionShape.of(source)
    lengths, budgets = _numbers("--num-tokens", num_tokens, int), _numbers("--budget", budget, float)
    names = list(POLICIES) if policy is None else [name.strip() for name in policy.split(",")]
    policies = {name: find_policy(name) for name in names}
    _check("--seeds", seeds)
    _check("--num-tokens", min(lengths))
    for length, share, each in product(lengths, budgets, policies.values()):
        _check_room(each, length, share)
    num_layers = _num_layers(source, layers)
    if source.is_windowed:
        typer.echo(
            f"dooly: note: {source.name}: layers with a sliding window stay as they are under policies; errors are those of "
            "layers whose attention is over all tokens",
            err=True,
        )
    found: list[OutputError] = []
    num_errors = len(lengths) * seeds * len(policies) * len(budgets)
    with progress_bar(f"{source.name}: attention errors") as progress:
        for length, seed in product(lengths, range(seeds)):
            progress(len(found), num_errors)
            for measured in _errors(_Text(shape, num_layers, length, seed), policies, budgets):
                found.append(measured)
                progress(len(found), num_errors)
    if html_file is not None:
        from dooly.report import write_kv_errors

        write_kv_errors(source.name, found, html_file)
    if write_json(_document(source.name, found), json_file):
        _show(found)


@kv.command()
@_naming_flags()
def profile(  # noqa: PLR0913 - one argument an option
    model: Model,
    *,
    db: Database,
    policy: Annotated[
        str, typer.Option(metavar="NAME", help="A policy that drops tokens, as laprox (after its paper's abstract).")
    ],
    budget: Annotated[float, typer.Option(metavar="SHARE", help="Share of a prompt's tokens that are kept.")],
    num_tokens: Annotated[str, typer.Option(metavar="N,...", help="Lengths of prompts.")] = "1024,2048,4096,8192",
    tensor_parallel_size: Annotated[int, typer.Option(metavar="N", help="Ranks that share the heads; one is measured.")] = 1,
) -> None:
    """Measure what a policy takes to choose in one layer of MODEL, for `dooly simulate --db`: on this CPU, in float32."""
    from torch.nn import Identity

    from dbstore import Store
    from dooly.catalog import count_disturbed, describe_module_environment, read_selection
    from dooly.engines import find_model
    from dooly.kv import AttentionShape, find_policy, profile_selection
    from dooly.kv_policy import KVPolicy, check_budget
    from dooly.predict import selection_latency

    find_policy(policy)
    check_budget(budget)
    source, told, lengths = find_model(model), KVPolicy(policy, budget), _numbers("--num-tokens", num_tokens, int)
    _check("--num-tokens", min(lengths))
    shape, store = AttentionShape.of(source).on_rank(tensor_parallel_size), Store.open(db, "a")
    with progress_bar(f"{source.name}: selecting by {told}") as progress:
        profile_selection(store, told, shape, lengths, progress=progress)
    table = new_table("tokens", "ms a layer", numbers=("tokens", "ms a layer"))
    environment = describe_module_environment(Identity())
    latency = selection_latency(store, told, shape.head_sizes, environment)
    assert latency is not None
    for length in lengths:
        table.add_row(f"{length:,}", f"{1e3 * latency(num_tokens=length).seconds:.2f}")
    (traced,) = (each for each, digest in read_selection(store, told, shape.head_sizes) if digest == environment.digest)
    counts = [count_disturbed(store.read(op.signature, environment.digest)) for op in traced.operations]
    disturbed, points = (sum(numbers) for numbers in zip(*counts, strict=True))
    doubt = f"; other work disturbed {disturbed} of {points} points: measure again on a machine left alone" if disturbed else ""
    show(table, f"{told}, as fitted to what was measured{doubt}")


@dataclass(frozen=True, slots=True)
class _Text:
    """A text and the model that computes it."""

    shape: AttentionShape
    """Sizes of the model's attention."""
    num_layers: int
    """Its layers."""
    num_prompt: int
    """Tokens of the prompt."""
    seed: int
    """Of weights and text."""


def _errors(text: _Text, policies: Mapping[str, Policy | CritiPrefill], budgets: Sequence[float]) -> Iterator[OutputError]:
    """Yield the errors of policies at budgets on one text."""
    from dooly.kv import capture_attention, output_errors, structured_llama, structured_text

    length = text.num_prompt + _NUM_LATER
    network = structured_llama(text.shape, text.num_layers, length, text.seed)
    captured = capture_attention(network, structured_text(length, text.seed))
    yield from output_errors(captured, text.num_prompt, policies, budgets, text.seed)


def _num_layers(model: ModelSource, asked: int | None) -> int:
    """Return how many layers to make."""
    most = int(model.text_config.get("num_hidden_layers", _NUM_LAYERS if asked is None else asked))
    if asked is not None and not 1 <= asked <= most:
        raise typer.BadParameter(f"--layers: {asked} is not within 1..{most}, the layers of {model.name}")
    return min(_NUM_LAYERS, most) if asked is None else asked


def _check_room(policy: Policy | CritiPrefill, num_tokens: int, budget: float) -> None:
    """Refuse a budget before anything is computed."""
    from dooly.kv import Policy

    if isinstance(policy, Policy):
        policy.num_kept(num_tokens, budget)
    elif budget != 1:
        policy.num_critical_blocks(num_tokens, budget)


def _numbers(flag: str, text: str, kind: type[Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as wrong:
        raise typer.BadParameter(f"{flag}: {text!r} must be numbers with commas between them") from wrong


def _check(flag: str, least: int) -> None:
    if least < 1:
        raise typer.BadParameter(f"{flag}: {least} is not at least 1")


def _document(model: str, found: Sequence[OutputError]) -> dict[str, Any]:
    """Return what `--json` writes: each policy, budget, length and seed by layer and head."""
    return {
        "schema": 1,
        "model": model,
        "errors": [
            {
                "policy": each.policy,
                "budget": each.budget,
                "num_tokens": each.num_tokens,
                "seed": each.seed,
                "output": each.output,
                "worst": each.worst,
                "window": each.window,
                "layers": [
                    {"output": at.output, "worst": at.worst, "window": at.window, "heads": list(at.heads)} for at in each.layers
                ],
            }
            for each in found
        ],
    }


def _show(found: Sequence[OutputError]) -> None:
    """Print the mean over seeds: by policy and length, budgets in columns, then each layer's at the first budget."""
    budgets = list(dict.fromkeys(each.budget for each in found))
    columns = [f"{budget:.4g}" for budget in budgets]
    num_layers = len(found[0].layers)
    layers = [f"layer {at}" for at in range(num_layers)]
    table = new_table("policy", "tokens", *columns, *layers, numbers=("tokens", *columns, *layers))
    caption = f"Relative error after the output projection, mean over layers and seeds; by layer at budget {columns[0]}."
    for name, length in dict.fromkeys((each.policy, each.num_tokens) for each in found):
        if _is_idle(name, length):
            caption += f" {name} computes {length:,} tokens whole."
            table.add_row(name, f"{length:,}", *["-"] * (len(columns) + num_layers))
            continue
        rows = [each for each in found if (each.policy, each.num_tokens) == (name, length)]
        means = [fmean(each.output for each in rows if each.budget == budget) for budget in budgets]
        first = [each for each in rows if each.budget == budgets[0]]
        by_layer = [fmean(each.layers[at].output for each in first) for at in range(num_layers)]
        table.add_row(name, f"{length:,}", *(f"{mean:.2%}" for mean in (*means, *by_layer)))
    show(table, caption)


def _is_idle(policy: str, num_tokens: int) -> bool:
    """Tell whether a policy acts on no prompt of a length."""
    from dooly.kv import CritiPrefill, find_policy

    found = find_policy(policy)
    return isinstance(found, CritiPrefill) and found.is_whole(num_tokens)
