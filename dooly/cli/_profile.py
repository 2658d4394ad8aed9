"""`dooly profile`: measure the operations that a store lacks."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from dooly.cli._options import SIMULATE_ONLY, Database, engine_flags
from dooly.cli._output import new_table, progress_bar, show
from dooly.engines import ServingConfig, find_model
from dooly.errors import MissingOperationError

if TYPE_CHECKING:
    from dbstore import Store
    from dooly.engines import ModelSource
    from dooly.measure import ProfileResult

_MANY_UNSTEADY = 0.2
"""Fraction of the points measured from which on their spread is worth a warning."""


@engine_flags(without=("async_scheduling", "max_cudagraph_capture_size", *SIMULATE_ONLY))
def profile(  # noqa: PLR0913 - one argument an option
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders with a config.json, or listed names.")],
    *,
    db: Database,
    budget_seconds: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Stop measuring after so long, all models together.")
    ] = None,
    target_error: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="End an operation's sweep where its latency is known to this median relative error; 0 measures a whole grid.",
        ),
    ] = 0.03,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what is known and what is missing.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Measure on all devices of a Ray cluster at once; `local` is one of this machine."),
    ] = None,
    serving: ServingConfig,
) -> None:
    """Measure models' operations into a store; what it holds already is not measured again."""
    sources = [find_model(model) for model in models]
    store = _open(db, dry_run=dry_run)
    from dooly.measure import profile as profile_model
    from dooly.measure import profile_on_ray

    results: list[ProfileResult] = []
    for source in sources:
        spent_s = sum(result.measuring_s for result in results)
        budget_s = None if budget_seconds is None else max(0.0, budget_seconds - spent_s)
        with progress_bar(f"{source.name}: tracing, starting the engine") as update:
            errors: list[float] = []

            def told(done: int, total: int, name: str = source.name, errors: list[float] = errors) -> None:
                update(done, total, what=f"{name}, error {errors[-1]:.1%}" if errors else name)

            if ray is not None and not dry_run:
                result = profile_on_ray(source, db, serving, address=ray, budget_s=budget_s, target_error=target_error)
            else:
                result = profile_model(
                    source,
                    store,
                    serving,
                    budget_s=budget_s,
                    target_error=target_error,
                    dry_run=dry_run,
                    progress=told,
                    on_error=errors.append,
                )
            if not dry_run:
                update(1, 1, what=f"{source.name}: fitting")
                _fit(source, store, serving)
        results.append(result)
        _warn_if_unsteady(result)
        _note_what_is_out_of_reach(result, target_error)
    (_show_forecasts if dry_run else _show)(results)


def _fit(source: ModelSource, store: Store, serving: ServingConfig) -> None:
    """Fit a model, which keeps in the store what it fits; a machine that only measures may lack what fits."""
    from dooly.predict import load_latency_model

    with suppress(MissingOperationError):  # a budget may have ended before every operation had its first point
        try:
            load_latency_model(store, source, serving)
        except ModuleNotFoundError as error:
            if error.name != "catboost":
                raise
            typer.echo(f"dooly: note: {source.name}: nothing was fitted, as catboost is not installed here", err=True)


def _open(db: str, *, dry_run: bool) -> Store:
    """Open the store; a dry run makes none where there is none, and plans against an empty one."""
    from dbstore import Store, StoreNotFoundError

    try:
        return Store.open(db, "r" if dry_run else "a")
    except StoreNotFoundError:
        typer.echo(f"dooly: note: {db} holds no store yet; this is of an empty one", err=True)
        return Store.open("memory://dooly-dry-run", "a")


def _warn_if_unsteady(result: ProfileResult) -> None:
    if result.num_unsteady > _MANY_UNSTEADY * result.num_measured:
        typer.echo(
            f"dooly: warning: {result.model}: {result.num_unsteady} of {result.num_measured} points are unsteady, as when "
            "another process competes for the cores; once it has stopped, the same command measures anew what was disturbed",
            err=True,
        )


def _note_what_is_out_of_reach(result: ProfileResult, target: float) -> None:
    """Say what cannot be measured, and why sweeps ended above their target."""
    if result.num_infeasible:
        typer.echo(
            f"dooly: note: {result.model}: points that cannot be run here, as for want of memory: {result.num_infeasible}; "
            "simulations of as large batches extrapolate",
            err=True,
        )
    floor = result.least_floor
    if result.known_least is None or floor is None or result.num_left or not result.num_measured:
        return
    name, error = result.known_least
    if error > target:
        why = "latencies scatter, or jump from one size to the next" if floor > target else "more would hardly pay"
        typer.echo(
            f"dooly: note: {result.model}: {name} is known to {error:.1%}, with a target of {target:.1%}; by all points but "
            f"one that would be {floor:.1%}: {why}",
            err=True,
        )


def _show(results: list[ProfileResult]) -> None:
    numbers = ("operations", "grid points", "measured now", "left", "unsteady", "disturbed", "seconds", "step error")
    table = new_table("model", *numbers, "known least", numbers=numbers)
    for r in results:
        counts = (r.num_operations, r.num_points, r.num_measured, r.num_left, r.num_unsteady, r.num_spoiled)
        error = "-" if r.expected_error is None else f"{r.expected_error:.1%}"
        least = "-" if r.known_least is None else f"{r.known_least[0]} {r.known_least[1]:.1%}"
        table.add_row(r.model, *map(str, counts), f"{r.measuring_s:.1f}", error, least)
    show(table)


def _show_forecasts(results: list[ProfileResult]) -> None:
    numbers = ("operations", "known", "by family", "missing", "grid points", "points wanted", "seconds")
    table = new_table("model", *numbers, numbers=numbers)
    for r in results:
        f = r.forecast
        known = ("-", "-", "-") if f is None else (f.num_known, f.num_by_family, f.num_missing)
        most = "at most " if f is not None and f.is_most else ""
        seconds = "unknown" if r.forecast_s is None else f"{most}{r.forecast_s:.0f}"
        table.add_row(r.model, *map(str, (r.num_operations, *known, r.num_points)), f"{most}{r.num_left}", seconds)
    show(table)
