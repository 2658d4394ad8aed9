"""The options of a fleet, and what is printed of its engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dooly.cli._output import new_table, show
from dooly.simulation import ROUTERS

if TYPE_CHECKING:
    from dooly.simulation import FleetLayout, FleetResult


_PANEL = "Several engines"
DataParallelSize = Annotated[
    int, typer.Option(min=1, metavar="N", help="Engines, each of which serves requests whole.", rich_help_panel=_PANEL)
]
RouterOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"What sends requests to engines, {', '.join(ROUTERS)}: by default vLLM's own balancing, between "
        "--prefill-replicas and --decode-replicas the least loaded.",
        rich_help_panel=_PANEL,
    ),
]
PrefillReplicas = Annotated[
    int, typer.Option(min=0, metavar="N", help="Engines that compute prompts alone.", rich_help_panel=_PANEL, show_default=False)
]
DecodeReplicas = Annotated[
    int, typer.Option(min=0, metavar="N", help="Engines that generate alone.", rich_help_panel=_PANEL, show_default=False)
]
KVTransferText = Annotated[
    str | None,
    typer.Option(
        "--kv-transfer",
        metavar="SPEC",
        help="The link that each rank moves KV caches over, from prefill to decode, as bandwidth=50,latency=20 (GB/s, us).",
        rich_help_panel=_PANEL,
    ),
]


_SEVERAL = "Several engines; values with commas between them are all tried"
EngineChoices = Annotated[
    str | None, typer.Option(metavar="N,...", help="Engines, each of which serves requests whole.", rich_help_panel=_SEVERAL)
]
RouterChoices = Annotated[
    str | None, typer.Option(metavar="NAME,...", help=f"As {', '.join(ROUTERS)}.", rich_help_panel=_SEVERAL)
]
PrefillChoices = Annotated[
    str | None, typer.Option(metavar="N,...", help="Engines that compute prompts alone.", rich_help_panel=_SEVERAL)
]
DecodeChoices = Annotated[
    str | None, typer.Option(metavar="N,...", help="Engines that generate alone.", rich_help_panel=_SEVERAL)
]


def fleet_layouts(
    data_parallel_size: str | None,
    router: str | None,
    prefill_replicas: str | None,
    decode_replicas: str | None,
    link: str | None,
) -> tuple[FleetLayout, ...]:
    """Return the fleets that options with several values ask for: those whose engines serve whole requests, then the others."""
    from dooly.predict import Interconnect
    from dooly.simulation import FleetLayout

    sides = (_counts("--prefill-replicas", prefill_replicas), _counts("--decode-replicas", decode_replicas))
    is_apart = any(sides)
    sizes = _counts("--data-parallel-size", data_parallel_size) or (() if is_apart else (1,))
    routers: list[str | None] = [name.strip() for name in router.split(",")] if router else [None]
    for name in routers:
        if name is not None and name not in ROUTERS:
            raise typer.BadParameter(f"--router: {name!r} is none of {', '.join(ROUTERS)}")
    transfer = None if link is None else Interconnect.parse(link, "--kv-transfer")
    if transfer is not None and not is_apart:
        FleetLayout(kv_transfer=transfer)
    whole = [FleetLayout(size, name) for size in sizes for name in (routers if size > 1 else [None])]
    first, second = (side or (0,) for side in sides)
    apart = [FleetLayout(1, name, p, d, transfer) for p in first for d in second for name in routers] if is_apart else []
    if router is not None and all(layout.router is None for layout in (*whole, *apart)):
        raise typer.BadParameter("--router: one engine needs none; leave it out, or give --data-parallel-size as well")
    return (*whole, *apart)


def _counts(option: str, text: str | None) -> tuple[int, ...]:
    try:
        return () if text is None else tuple(int(value) for value in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {text!r} must be whole numbers with commas between them") from error


def fleet_layout(
    data_parallel_size: int, router: str | None, prefill_replicas: int, decode_replicas: int, kv_transfer: str | None
) -> FleetLayout:
    """Return the fleet that options ask for."""
    from dooly.predict import Interconnect
    from dooly.simulation import FleetLayout

    link = None if kv_transfer is None else Interconnect.parse(kv_transfer, "--kv-transfer")
    return FleetLayout(data_parallel_size, router, prefill_replicas, decode_replicas, link)


def show_replicas(fleet: FleetResult) -> None:
    """Print what each engine did."""
    columns = ("requests", "output tok/s", "TTFT mean ms", "TPOT mean ms", "steps", "preemptions")
    table = new_table("engine", "role", *columns, numbers=columns)
    for place, one in enumerate(fleet.replicas):
        found = one.summary()
        if one.result is None:
            table.add_row(str(place), one.role, "0", *[""] * (len(columns) - 1))
            continue
        means = (found[f"{metric}_s"]["mean"] for metric in ("ttft", "tpot"))
        rate = found["throughput"]["output_tokens_per_s"]
        table.add_row(
            str(place),
            one.role,
            str(found["requests"]),
            "-" if rate is None else f"{rate:.1f}",
            *("-" if mean is None else f"{1e3 * mean:.1f}" for mean in means),
            str(found["steps"]),
            str(found["preemptions"]),
        )
    show(table)
