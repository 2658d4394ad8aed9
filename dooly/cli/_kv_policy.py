"""The options of a KV-cache or prefill policy in simulated engines, and what is printed of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dooly.cli._output import new_table, show
from dooly.kv_policy import KEPT_BY, KVPolicy, Scope, Term, check_budget, known_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.engines import ServingConfig
    from dooly.predict import LatencyModel
    from dooly.simulation import FleetLayout, FleetResult, SchedulerConfig, SimulationResult, StepLog, TermEffect, Workload

_PANEL = "KV-cache policies"
_NAMES = f"{', '.join(KEPT_BY)}, or none"
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--kv-policy",
        metavar="NAME",
        help=f"What is kept of a prompt, or computed of its attention: {_NAMES} (laprox after its paper's abstract).",
        rich_help_panel=_PANEL,
    ),
]
PolicyBudget = Annotated[
    str | None,
    typer.Option("--kv-budget", metavar="SHARE", help="Share of a prompt's tokens that is kept.", rich_help_panel=_PANEL),
]
PolicyChoices = Annotated[
    str | None,
    typer.Option(
        "--kv-policy",
        metavar="NAME,...",
        help=f"Policies, all tried: {_NAMES} (laprox after its paper's abstract).",
        rich_help_panel=_PANEL,
    ),
]
PolicyBudgets = Annotated[
    str | None,
    typer.Option("--kv-budget", metavar="SHARE,...", help="Shares of a prompt's tokens, all tried.", rich_help_panel=_PANEL),
]
_SHARED_BY = {
    None: "all are kept; segments of a prompt attend to the blocks of keys that they choose",
    Scope.HEAD: "each head keeps as many; what is kept is moved together into whole blocks",
    Scope.LAYER: "a layer's heads share the budget, and have pages of their own, the last of each half full",
    Scope.MODEL: "all heads of the model share the budget, and have pages of their own, the last of each half full",
}


def policy_choices(names: str | None, budgets: str | None) -> dict[str, tuple[KVPolicy | None, ...]]:
    """Return the engine setting that these two options make, a value for each combination; none where no policy is named.

    At budget 1, and for `none`, an engine has no policy.
    """
    tried = () if names is None else [_name(name.strip()) for name in names.split(",")]
    if any(tried) and budgets is None:
        raise typer.BadParameter("--kv-policy: how much is kept? give --kv-budget too, as 0.2")
    if budgets is None:
        return {}
    if not any(tried):
        raise typer.BadParameter("--kv-budget: of which policy? give --kv-policy too, other than none")
    shares = [_share(budget.strip()) for budget in budgets.split(",")]
    found = [None if name is None or share == 1 else KVPolicy(name, share) for name in tried for share in shares]
    return {"kv_policy": tuple(dict.fromkeys(found))}


def _name(text: str) -> str | None:
    name = known_name(text)
    if name is None and text.lower() != "none":
        raise typer.BadParameter(f"--kv-policy: {text!r} is not one of {_NAMES}")
    return name


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError as error:
        raise typer.BadParameter(f"--kv-budget: {text!r} is no number, as 0.2") from error
    check_budget(share, "--kv-budget")
    return share


def one_policy(name: str | None, budget: str | None) -> dict[str, KVPolicy]:
    """Return the engine setting that these two options make; none where nothing changes."""
    for flag, given in (("--kv-policy", name), ("--kv-budget", budget)):
        if given is not None and "," in given:
            raise typer.BadParameter(f"{flag}: {given!r} are several; give one, or try several with `dooly search`")
    (policy,) = policy_choices(name, budget).get("kv_policy", (None,))
    return {} if policy is None else {"kv_policy": policy}


def serve_by_terms(  # noqa: PLR0913, PLR0917 - what serves what
    requests: Workload,
    latency: LatencyModel,
    config: SchedulerConfig,
    serving: ServingConfig,
    layout: FleetLayout,
    logs: list[StepLog] | None,
) -> tuple[FleetResult, tuple[TermEffect, ...]]:
    """Return what serving the workload comes to, and what each term of a policy contributes, none without one."""
    from dooly.simulation import policy_terms

    if serving.kv_policy is None:
        return layout.serve(requests, latency, config, serving, logs), ()
    last: list[FleetResult] = []

    def serve(config: SchedulerConfig) -> SimulationResult:
        for log in logs or ():
            log.runs.clear()
        last[:] = [layout.serve(requests, latency, config, serving, logs)]
        return last[0].result

    terms = policy_terms(serving, latency, serve)
    return last[0], terms


def policy_document(policy: KVPolicy | None, terms: Sequence[TermEffect]) -> dict[str, Any]:
    """Return what `--json` adds for a policy: simulations without any term, and with one more at a time; nothing without one."""
    if policy is None:
        return {}
    pages = None if policy.scope is None else "whole blocks" if policy.is_even else "head-wise pages"
    found = {"policy": policy.name, "budget": policy.budget, "pages": pages, "terms": [asdict(term) for term in terms]}
    return {"kv_policy": found}


def show_terms(policy: KVPolicy | None, terms: Sequence[TermEffect], latency: LatencyModel, workload: Workload) -> None:
    """Print what each term of a policy contributes, and what its selection stands on; nothing without one."""
    if policy is None:
        return
    numbers = ("TTFT ms", "TPOT ms", "tok/s", "at once")
    table = new_table("KV policy", *numbers, numbers=numbers)
    for term in terms:
        values = (term.ttft_s, term.tpot_s)
        milliseconds = ("-" if value is None else f"{1e3 * value:.1f}" for value in values)
        rate = "-" if term.output_tokens_per_s is None else f"{term.output_tokens_per_s:.0f}"
        table.add_row(term.term if term.term == "none" else f"+ {term.term}", *milliseconds, rate, str(term.num_at_once))
    selecting, longest = "", max(request.num_prompt_tokens for request in workload.requests)
    if policy.changes(Term.SELECTION) and policy.acts_on(longest):
        found = latency.selections.latency(policy, longest)
        source = f"{found.source}, extrapolated: no such length was measured" if found.extrapolated else found.source
        selecting = f"; selecting of {longest:,} tokens takes {found.ns / 1e6:.1f} ms ({source})"
    show(table, f"{policy}: {_SHARED_BY[policy.scope]}{selecting}. Means; each row has one term more.")
