"""`dooly simulate`: serve a workload in virtual time, on measured latencies."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dooly.batch import Batch
from dooly.cli._fleet import (
    DataParallelSize,
    DecodeReplicas,
    KVTransferText,
    PrefillReplicas,
    RouterOption,
    fleet_layout,
    show_replicas,
)
from dooly.cli._kv_policy import PolicyBudget, PolicyName, one_policy, policy_document, serve_by_terms, show_terms
from dooly.cli._limits import LimitTexts, judge_limits, parse_limits
from dooly.cli._options import (
    LIMITS,
    AcceptanceText,
    CsvFile,
    DraftCost,
    HardwareName,
    HostSlowdown,
    HtmlFile,
    InterconnectText,
    JsonFile,
    Model,
    OptionalDatabase,
    SpeculativeText,
    WorkloadText,
    drafting,
    engine_flags,
    writable,
)
from dooly.cli._output import (
    ACCURACY_PAGES,
    TEXT_WIDTH,
    is_stdout,
    new_table,
    progress_bar,
    show,
    warn_if_extrapolated,
    write_json,
    writing,
)
from dooly.cli._stores import check_source, open_to_answer, serving_for
from dooly.engines import ServingConfig, find_model
from dooly.latency import slowed_host

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.power_cap import PowerCap
    from dooly.predict import Interconnect, LatencyModel, StepLatency
    from dooly.simulation import SchedulerConfig, SimulationResult, StepLog
    from dooly.speculation import SpeculativeConfig

_DECODE = Batch((1,), (1,))
"""The step that every profile knows."""
_LEAST_SHARE = 0.005
"""Share of the seconds from which on a source, or what goes beyond it, is named."""
_MUCH_UNCERTAINTY = 0.25
"""Fraction of a step's latency from which on its uncertainty is worth a warning."""


@engine_flags(unset=LIMITS)
def simulate(  # noqa: PLR0913 - one argument an option
    model: Model,
    *,
    workload: WorkloadText,
    db: OptionalDatabase = None,
    hardware: HardwareName = None,
    interconnect: InterconnectText = None,
    host_slowdown: HostSlowdown = None,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    html_file: HtmlFile = None,
    slo: LimitTexts = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=writable, help="Write steps and requests as a trace for ui.perfetto.dev."),
    ] = None,
    data_parallel_size: DataParallelSize = 1,
    router: RouterOption = None,
    prefill_replicas: PrefillReplicas = 0,
    decode_replicas: DecodeReplicas = 0,
    kv_transfer: KVTransferText = None,
    speculative_config: SpeculativeText = None,
    acceptance_rate: AcceptanceText = None,
    draft_cost: DraftCost = None,
    kv_policy: PolicyName = None,
    kv_budget: PolicyBudget = None,
    settings: dict[str, Any],
) -> None:
    """Simulate how the engine serves a workload, by the latencies in a store or of a device that `dooly hardware` lists."""
    check_source(db, hardware)
    from dooly.predict import load_latency_model
    from dooly.simulation import StepLog, check_acts, parse_workload, scheduler_config

    layout = fleet_layout(data_parallel_size, router, prefill_replicas, decode_replicas, kv_transfer)
    is_fleet = layout.num_replicas > 1
    if perfetto is not None and is_fleet:
        raise typer.BadParameter("--perfetto shows one engine; leave it out, or simulate one")
    source = find_model(model)
    settings |= drafting(speculative_config, acceptance_rate, draft_cost) | one_policy(kv_policy, kv_budget)
    serving = serving_for(source, hardware, settings)
    link = _link(interconnect, serving)
    limits_s = parse_limits(slo)
    requests = parse_workload(workload)
    for note in requests.notes:
        typer.echo(f"dooly: note: {note}", err=True)
    with progress_bar(f"{source.name}: simulating"):
        store = None if db is None else open_to_answer(db)
        latency = load_latency_model(store, source, serving, hardware=hardware, interconnect=link)
        latency.host = slowed_host(latency.host, host_slowdown)
        config = scheduler_config(serving, latency)
        check_acts(serving.kv_policy, requests)
        logs = None if html_file is None and perfetto is None else [StepLog() for _ in range(layout.num_replicas)]
        fleet, terms = serve_by_terms(requests, latency, config, serving, layout, logs)
        result = fleet.result
    if hardware is None:
        _warn_if_uncertain(source.name, latency.step(_DECODE))
    warn_if_extrapolated(source.name, latency.extrapolated_share)
    judged = judge_limits(result.summary(), limits_s)
    document = fleet.summary() | {"fleet": asdict(layout)} if is_fleet else result.summary()
    document |= {"model": source.name, "workload": workload, "hardware": hardware, "host_slowdown": host_slowdown}
    document |= {"serving": asdict(serving), "provenance": dict(latency.provenance)}
    document |= {"extrapolated": latency.extrapolated_share, "notes": list(latency.notes)}
    document |= policy_document(serving.kv_policy, terms) | {"slo": judged}
    if not is_stdout(json_file):
        _show(result, judged)
        if is_fleet:
            show_replicas(fleet)
        show_terms(serving.kv_policy, terms, latency, requests)
        _show_sources(latency, serving, config, result, layout.num_replicas, host_slowdown)
    write_json(document, json_file)
    if csv_file is not None:
        with writing(csv_file):
            (fleet if is_fleet else result).write_csv(csv_file)
    if html_file is not None:
        from dooly.report import write_simulation

        served, steps, title = fleet if is_fleet else result, StepLog.joined(logs or ()), f"{source.name}: {workload}"
        with writing(html_file):
            write_simulation(served, title, html_file, limits_s=limits_s, steps=steps, latency=latency, config=config)
    if perfetto is not None and logs is not None:
        _write_perfetto(result, logs[0], perfetto)


def _write_perfetto(result: SimulationResult, log: StepLog, path: Path) -> None:
    from dooly.report import write_perfetto

    with writing(path):
        write_perfetto(result, log, path)


def _link(interconnect: str | None, serving: ServingConfig) -> Interconnect | None:
    """Return the link between ranks that the option states; refuse one between none."""
    from dooly.predict import Interconnect

    link = None if interconnect is None else Interconnect.parse(interconnect)
    if link is not None and serving.tensor_parallel_size * serving.pipeline_parallel_size == 1:
        raise typer.BadParameter("--interconnect: one rank has no link to others; leave it out, or give --tensor-parallel-size")
    return link


def _show_sources(  # noqa: PLR0913, PLR0917 - all that an answer stands on
    latency: LatencyModel,
    serving: ServingConfig,
    config: SchedulerConfig,
    result: SimulationResult,
    num_replicas: int,
    host_slowdown: float | None,
) -> None:
    """Say what the answer stands on: where its seconds are from, how well they are known, and what was taken for granted."""
    shares = ", ".join(f"{share:.0%} {source}" for source, share in latency.provenance.items() if share >= _LEAST_SHARE)
    step = latency.step(_DECODE, extrapolate=True)
    table = new_table("it stands on", "")
    ranks = "1 rank" if serving.tensor_parallel_size == 1 else f"{serving.tensor_parallel_size} ranks"
    weights, cache = latency.environment.quantization or serving.dtype, latency.environment.kv_cache_dtype
    table.add_row(
        "model",
        f"{latency.traced.model}, {ranks}; weights {weights}, KV cache {cache}",
    )
    table.add_row(
        "seconds",
        f"{shares}{_beyond_text(latency.extrapolated_share)}; the kernels of one decode step are typically off by "
        f"{step.uncertainty_s / step.seconds:.1%}, whole runs of real engines by more: "
        f"{ACCURACY_PAGES[latency.hardware is not None]}",
    )
    table.add_row(
        "engine",
        f"at most {serving.max_num_seqs} requests and {serving.max_num_batched_tokens:,} tokens a step, "
        f"{serving.max_model_len:,} tokens a request; a step is scheduled "
        f"{'while the one before runs' if latency.schedules_ahead else 'when the one before has run'}",
    )
    if (speculative := config.speculative) is not None:
        table.add_row("drafts", _drafts_text(speculative))
    room = "; 1 GiB for CUDA and graphs is taken for granted" if latency.hardware is not None else ""
    table.add_row("KV cache", f"{_cache_text(config)}{room}")
    if latency.environment.device_kind == "cuda":
        waiting = result.host_wait_s / result.duration_s / num_replicas
        table.add_row("host", _host_text(latency, waiting, host_slowdown))
        table.add_row("power limit", _power_text(latency.power_cap, result.power_limit_s / result.duration_s / num_replicas))
    for note in latency.notes:
        table.add_row("doubtful", note)
    if latency.hardware is not None:
        table.add_row("device", f"{latency.hardware.device}, kernels of {latency.hardware.engine}")
        table.add_row("source", latency.hardware.source)
    show(table, width=TEXT_WIDTH)


def _beyond_text(share: float | None) -> str:
    """Say how much of the seconds goes beyond what was measured, which no share of sources tells."""
    return (
        ""
        if share is None or share < _LEAST_SHARE
        else f", of which {share:.0%} beyond what was measured, whose error nobody knows"
    )


def _drafts_text(config: SpeculativeConfig) -> str:
    """Say how many tokens are drafted and accepted, and what is taken for granted of them."""
    rates = ", ".join(f"{rate:.0%}" for rate in config.acceptance_rates)
    text = (
        f"{config.num_speculative_tokens} by {config.method} in every step, of which the engine is told to accept {rates} by "
        f"position, {config.acceptance_length:.2f} tokens a step"
    )
    if config.draft_cost is None:
        return f"{text}; looking them up takes the device nothing, and a host that does is taken not to keep it waiting"
    return (
        f"{text}; a pass of the drafter takes (told) {config.draft_cost:.1%} of the model's step, counted as estimated above; "
        "its cache is taken to be as large as one layer's, its weights are not subtracted"
    )


def _cache_text(config: SchedulerConfig) -> str:
    """Say how many blocks the KV cache has, which groups of layers draw them, and whether what they hold is found again."""
    caching = "on" if config.enable_prefix_caching else "off"
    text = f"{config.num_kv_blocks:,} blocks of {config.block_size} tokens; prefix caching {caching}"
    if len(config.kv_cache_groups) > 1:
        numbers = Counter(group.kind.value.replace("_", " ") for group in config.kv_cache_groups)
        text += f"; groups of layers: {', '.join(f'{number} of {kind}' for kind, number in numbers.items())}"
    return text


def _power_text(cap: PowerCap | None, added: float) -> str:
    """Say what the device's power limit is taken to do, and how much of the time it adds."""
    if cap is None:
        return "what it takes from prompts without a pause is not known for this device, or is in the records"
    share, burst = f"{cap.slowdown_permille / 10:g} %", f"{cap.burst_ns / 1e6:g} ms"
    does = f"adds {added:.1%} of the time" if added else "adds nothing here"
    return f"{does}: products of prompts without a pause take {share} longer after {burst}, as on one H200"


def _host_text(latency: LatencyModel, waiting: float, slowdown: float | None) -> str:
    """Say what the engine's host is taken to do, and what is only assumed of it."""
    from dooly.catalog import CUDA_GRAPHS

    host = latency.host
    if latency.environment.execution_mode != CUDA_GRAPHS:
        return "what it does is in the records"
    if host is None:
        return "nobody measured one beside this device: it is taken never to keep the device waiting"
    whole, pieces, plain = (f"{ns / 1e6:.0f} ms" for ns in (host.whole_ns, host.pieces_ns, host.plain_ns))
    like = "as one did beside an H200" if slowdown is None else f"{slowdown:g} times as long as one took beside an H200"
    return (
        f"keeps the device waiting for {waiting:.0%} of the time: it launches steps with prompts "
        f"in {pieces}, above {host.max_captured_tokens} tokens in {plain}, {like}, by the number of layers; "
        f"decodes in {whole}, which is assumed"
    )


def _warn_if_uncertain(model: str, step: StepLatency) -> None:
    """Say so where a store does not tell a model's latencies well: measured by half, or on a machine that others used."""
    share = step.uncertainty_s / step.seconds
    if share > _MUCH_UNCERTAINTY:
        typer.echo(
            f"dooly: warning: {model}: one decode step is known to within {share:.0%} only; see with `dooly profile --dry-run` "
            "what is not measured yet, or profile into a new --db PATH while nothing else runs",
            err=True,
        )


def _show(result: SimulationResult, judged: Mapping[str, Mapping[str, Any]]) -> None:
    summary = result.summary()
    statistics = tuple(summary["ttft_s"])
    table = new_table("ms", *statistics, numbers=statistics)
    for metric in ("ttft", "tpot", "itl", "e2e"):
        values = summary[f"{metric}_s"].values()
        table.add_row(metric.upper(), *("-" if value is None else f"{1e3 * value:.1f}" for value in values))
    rates = [
        f"{value:.2f} {name.replace('_per_', '/').replace('_', ' ')}"
        for name, value in summary["throughput"].items()
        if value is not None
    ]
    line = (
        f"{summary['requests']} requests in {summary['duration_s']:.2f} s ({', '.join(rates)}), {result.num_steps} steps, "
        f"{result.num_preemptions} preemptions; simulated in {result.wall_s:.2f} s"
    )
    show(table, line)
    for name, found in judged.items():
        value = "no request has it" if found["value_s"] is None else f"{1e3 * found['value_s']:.1f} ms"
        typer.echo(
            f"{name.replace('_', '-')}: {value}, limit {1e3 * found['limit_s']:g} ms: {'met' if found['met'] else 'missed'}"
        )
