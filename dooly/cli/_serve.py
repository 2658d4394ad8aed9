"""`dooly serve`: answer over HTTP what steps and requests take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dooly.cli._options import LIMITS, HardwareName, InterconnectText, Model, OptionalDatabase, engine_flags
from dooly.cli._output import progress_bar
from dooly.cli._stores import check_source, serving_for
from dooly.engines import find_model
from dooly.errors import InvalidInputError, pip_install


@engine_flags(unset=LIMITS, without=("enable_prefix_caching",))
def serve(  # noqa: PLR0913 - one argument an option
    model: Model,
    *,
    db: OptionalDatabase = None,
    hardware: HardwareName = None,
    interconnect: InterconnectText = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; nothing but this machine reaches the default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 takes one that is free.")] = 8000,
    max_body_bytes: Annotated[int, typer.Option(min=1, metavar="N", help="Largest body of a request.")] = 4 << 20,
    timeout_seconds: Annotated[
        float, typer.Option(min=0.001, metavar="S", help="Longest time for a request, and for those in flight at the end.")
    ] = 10.0,
    reload_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Pause between two looks whether --db changed; 0 never looks again.")
    ] = 5.0,
    mean_prompt_tokens: Annotated[
        float | None, typer.Option(metavar="N", help="Mean prompt of the servers' requests, less what lies in their caches.")
    ] = None,
    mean_output_tokens: Annotated[
        float | None,
        typer.Option(metavar="N", help="Mean output of these: with both, prompts come between decodes, and slow them down."),
    ] = None,
    settings: dict[str, Any],
) -> None:
    """Serve latencies over HTTP: /predict and /predict/bulk as llm-d's latency predictor, /step for batches."""
    check_source(db, hardware)
    if (mean_prompt_tokens is None) != (mean_output_tokens is None):
        raise typer.BadParameter("give both --mean-prompt-tokens and --mean-output-tokens, or neither")
    try:
        from dooly.adapters.service import ModelSlot, ServiceLimits, Traffic, create_app, run_service
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"serve: {error.name} is not installed; install it with {pip_install('serve')}") from error
    from dooly.predict import Interconnect

    source = find_model(model)
    serving = serving_for(source, hardware, settings)
    link = None if interconnect is None else Interconnect.parse(interconnect)
    limits = ServiceLimits(max_body_bytes, timeout_seconds, reload_s=reload_seconds)
    traffic = (
        None if mean_prompt_tokens is None or mean_output_tokens is None else Traffic(mean_prompt_tokens, mean_output_tokens)
    )
    with progress_bar(f"{source.name}: loading"):
        slot = ModelSlot(source, serving, store=db, hardware=hardware, interconnect=link, traffic=traffic)
    what = f"{source.name} on {slot.served.latency.environment.device}"

    def listening(url: str) -> None:
        typer.echo(f"{url} serves {what}; stop it with Ctrl-C", err=True)

    run_service(create_app(slot, limits), host, port, stop_s=timeout_seconds, listening=listening)
