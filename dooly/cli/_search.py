"""`dooly search`: which models, devices and engine settings serve the most requests within latency limits."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dooly.cli._fleet import DecodeChoices, EngineChoices, KVTransferText, PrefillChoices, RouterChoices, fleet_layouts
from dooly.cli._kv_policy import PolicyBudgets, PolicyChoices, policy_choices
from dooly.cli._limits import LimitTexts, parse_limits
from dooly.cli._options import HostSlowdown, HtmlFile, InterconnectText, JsonFile, engine_choices, writable
from dooly.cli._output import ACCURACY_PAGES, is_stdout, new_table, progress_bar, show, warn_if_extrapolated, write_json, writing
from dooly.engines import find_model

if TYPE_CHECKING:
    from dooly.searching import FoundCandidate, SearchResult

_SHOWN_REASONS = 12
"""Reasons that are printed; all are in JSON and CSV."""
_LEAST_SHARE = 0.005
"""Share of the seconds from which on a source is named."""


@engine_choices
def search(  # noqa: PLR0913 - one argument an option
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders with a config.json, or listed names.")],
    *,
    hardware: Annotated[str, typer.Option(metavar="NAME,...", help="Devices that `dooly hardware` lists.")],
    workload: Annotated[
        str,
        typer.Option(
            metavar="SPEC|FILE",
            help="As poisson:prompt=512,output=64-256, also with requests=400,seed=0; gamma with cv=; or a file, whose arrivals "
            "are scaled. Their rate is what is searched; rate=4 in it is --rate 4.",
        ),
    ],
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", help="Requests a second to sustain: what needs the fewest GPUs for it, or the least money, is best."
        ),
    ] = None,
    ttft_p90: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time to first token of 90 % at most, as 0.5, in seconds, or 500ms.")
    ] = None,
    tpot_p90: Annotated[str | None, typer.Option(metavar="TIME", help="Time per output token of 90 % at most.")] = None,
    slo: LimitTexts = None,
    price: Annotated[
        str | None,
        typer.Option(metavar="NAME=COST,...", help="What a GPU costs an hour, as h200=3.5,h100=2, to find the cheapest."),
    ] = None,
    interconnect: InterconnectText = None,
    host_slowdown: HostSlowdown = None,
    top: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="How many to find the highest rate of; the table has others too, with >=."),
    ] = 10,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=writable,
            help="Keep each simulation here as it comes, and go on from those that it holds.",
        ),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; by default one a core.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Ray cluster to simulate on, as auto or ray://HOST:10001, or local."),
    ] = None,
    json_file: JsonFile = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", callback=writable, help="Write one row a candidate, best first.")
    ] = None,
    html_file: HtmlFile = None,
    data_parallel_size: EngineChoices = None,
    router: RouterChoices = None,
    prefill_replicas: PrefillChoices = None,
    decode_replicas: DecodeChoices = None,
    kv_transfer: KVTransferText = None,
    kv_policy: PolicyChoices = None,
    kv_budget: PolicyBudgets = None,
    choices: dict[str, tuple[Any, ...]],
) -> None:
    """Search engine settings, models and devices for those that serve the most requests a GPU within latency limits."""
    from dooly.predict import Interconnect
    from dooly.searching import search as find

    choices |= policy_choices(kv_policy, kv_budget)
    fleets = fleet_layouts(data_parallel_size, router, prefill_replicas, decode_replicas, kv_transfer)
    prices = None if price is None else dict(_priced(text) for text in price.split(","))
    with progress_bar("searching: simulations, as far as planned") as update:
        result = find(
            [find_model(model) for model in models],
            [name.strip() for name in hardware.split(",")],
            workload,
            parse_limits(slo, {"ttft_p90": ttft_p90, "tpot_p90": tpot_p90}),
            rate=rate,
            choices=choices,
            interconnect=None if interconnect is None else Interconnect.parse(interconnect),
            host_slowdown=host_slowdown,
            fleets=fleets,
            prices=prices,
            top=top,
            state=state,
            num_processes=processes,
            ray=ray,
            progress=update,
        )
    for note in result.notes:
        typer.echo(f"dooly: note: {note}", err=True)
    if not is_stdout(json_file):
        _show(result, tuple(choices))
    write_json(result.to_json(), json_file)
    if csv_file is not None:
        with writing(csv_file):
            result.write_csv(csv_file)
    if html_file is not None:
        from dooly.report import write_search

        with writing(html_file):
            write_search(result, html_file)


def _priced(text: str) -> tuple[str, float]:
    name, _, price = text.partition("=")
    try:
        return name.strip(), float(price)
    except ValueError as error:
        raise typer.BadParameter(f"--price: {text!r} is no NAME=COST, as h200=3.5") from error


def _show(result: SearchResult, settings: tuple[str, ...]) -> None:
    """Print the candidates that serve within the limits, the reasons of the others, and the command of the best."""
    shown = [found for found in result.candidates if found.best is not None]
    if shown:
        names = (*settings, "engines")
        varied = [name for name in names if len({found.candidate.shown(name) for found in result.candidates}) > 1]
        _show_table(result, shown, varied)
    for reason, candidates in result.without_rate[:_SHOWN_REASONS]:
        first, others = candidates[0].candidate, ", ..." if len(candidates) > 1 else ""
        place = f"{first.model.name}, {first.hardware}, tp {first.serving.tensor_parallel_size}{others}"
        typer.echo(f" {len(candidates)} × {reason} [{place}]")  # noqa: RUF001 - as counts are written
    if (hidden := len(result.without_rate) - _SHOWN_REASONS) > 0:
        typer.echo(f" and {hidden} reasons more; see --csv or --json")
    best = result.best
    if best is None:
        typer.echo(" no candidate meets the limits")
        return
    assert best.best is not None
    shares = ", ".join(f"{share:.0%} {source}" for source, share in best.best.provenance.items() if share >= _LEAST_SHARE)
    typer.echo(f" the best's seconds are {shares}; how far such answers are from real servers: {ACCURACY_PAGES[True]}")
    for note in best.best.notes:
        typer.echo(f"dooly: note: {best.candidate.hardware}: {note}", err=True)
    warn_if_extrapolated(best.candidate.model.name, best.best.extrapolated)
    if best.ends_early:
        rate = best.evaluations[-1].requests_per_s
        typer.echo(
            f"dooly: warning: the best stays within the limits up to {rate:.3g} requests a second, its throughput with all of "
            "them at once; a longer workload, with a larger requests=, may tell more",
            err=True,
        )
    if (copies := best.copies) is not None:
        share = "" if copies == 1 else f", {copies} of these, each sent an equal share"
        typer.echo(f"\n {result.demanded:g} requests/s: {best.total_gpus} GPU{'s' if best.total_gpus != 1 else ''}{share}")
    typer.echo(f"\n {best.candidate.command}")


def _show_table(result: SearchResult, shown: list[FoundCandidate], settings: list[str]) -> None:
    priced = shown[0].price_per_gpu_hour is not None
    numbers = [
        *(["GPUs"] if result.demanded is None else ["copies", "GPUs in all"]),
        *(["cost/1,000 req"] if priced else []),
        "req/s/GPU",
        "req/s",
        "below",
        "tok/s/GPU",
    ]
    limits = [f"{name.replace('_', ' ').upper()} ms" for name in result.limits]
    numbers += [*limits, "KV blocks"]
    table = new_table("model", "hardware", *settings, *numbers, numbers=(*settings, *numbers))
    for found in shown:
        at, candidate = found.best, found.candidate
        assert at is not None
        latencies = [at.latencies_s[name] for name in result.limits]
        table.add_row(
            candidate.model.name,
            candidate.hardware,
            *(candidate.shown(name) for name in settings),
            *_devices(found),
            *([f"{found.cost_per_1000_requests:.4g}"] if priced else []),
            f"{found.goodput_per_gpu:.4g}",
            f"{'' if found.exact else '>= '}{at.rate:g}",
            "-" if found.below is None else f"{found.below:g}",
            f"{at.output_tokens_per_s / candidate.num_gpus:.0f}",
            *("-" if value is None else f"{1e3 * value:.1f}" for value in latencies),
            f"{at.num_kv_blocks:,}",
        )
    unsure = any(not found.exact for found in shown)
    note = "; >=: left there, as it cannot be among the best" if unsure else ""
    goal = "" if result.demanded is None else f" for {result.demanded:g} requests/s"
    within = ", ".join(f"{name.replace('_', ' ').upper()} {_time(limit_s)}" for name, limit_s in result.limits.items())
    number = len(result.candidates)
    counts = f"{number} candidate{'' if number == 1 else 's'}, {result.num_simulations} simulations,{goal} within {within}"
    show(table, counts + note)


def _devices(found: FoundCandidate) -> list[str]:
    """Return how many GPUs a candidate takes; where a rate is demanded, how many copies of it bear that, and all their GPUs."""
    if found.copies is None:
        return [str(found.candidate.num_gpus)]
    return [f"{'' if found.exact or found.copies == 1 else '<= '}{number}" for number in (found.copies, found.total_gpus)]


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{1e3 * seconds:g} ms"
