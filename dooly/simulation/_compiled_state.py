"""What the compiled loop works on: records of requests, of places in a step, of the engine and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dooly.prices._arrays import AMOUNTS, new_records, new_scratch, record, sources
from dooly.simulation._columns import column

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.latency import HostTimes
    from dooly.power_cap import PowerCap
    from dooly.prices import PriceSheet
    from dooly.prices._arrays import Scratch
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Request

    Floats = npt.NDArray[np.float64]
    Records = np.recarray[Any, Any]

GAPS = 1 << 16
"""Gaps between tokens that are kept until they are counted, beside a few for each running request."""
_SLOTS = 1 << 16
"""Values of attention's trees that are kept: a megabyte."""


SETTINGS = record(
    i8="max_model_len max_num_seqs max_num_batched_tokens block_size long_prefill_token_threshold watermark_blocks"
    " enable_chunked_prefill scheduler_reserve_full_isl enable_prefix_caching async_scheduling is_closed"
    f" prepare_ns whole_ns pieces_ns plain_ns max_captured_tokens burst_ns slowdown_permille {sources(__file__)}"
)
"""What stays the same, under the names of `SchedulerConfig`, `HostTimes` and `PowerCap`."""
REQUEST = record(
    i8="arrival_ns scheduled_ns first_token_ns finish_ns token_ns",
    i4="prompt total known computed held kept older newer last_launch previous_launch",
)
"""Of each request its times, -1 before they are known, `token_ns` that of the last token that came out; tokens of its prompt and
in all, known ones (the prompt and what was generated, or is under way) and computed ones; blocks that it holds, and free ones
with its first tokens; the requests whose free blocks are overwritten before and after its own, -1 for none; and the launches
that generate its latest token and the one before."""
PLACE = record(i4="running preempted scheduled granted under_way brings")
"""Positions in the workload of running requests in order of admission, of preempted ones, the last of which is first in the
queue, of those in the step, with their tokens, and of those in the step that has not run, with what it brings each as bits."""
ENGINE = record(
    i8="now_ns end_ns host_wait_ns power_limit_ns spent_ns ran_ns num_arrived num_sent num_admitted num_running num_preempted"
    " num_scheduled num_under_way num_free num_kept oldest newest num_preemptions num_steps num_launches num_latest has_behind"
    " num_steps_under_way num_gaps",
)
"""The clock, when the device is free, how long it has waited for its host, what its power limit has added to steps, how much of
its burst was spent behind the last step that drew on it, and when that had run; how many requests have arrived, were sent, were
admitted once, run, were preempted and wait, are in the step, and in the step under way; free blocks, those of them that hold
something, and whose are overwritten first and last; preemptions, steps, launches, the steps of the latest, whether one was under
way behind it, and how many steps have not run; and gaps between tokens that are not counted yet."""
GAP = record(i8="gap_ns count")
"""A time between two tokens, and how often it occurred."""


class LoopState(NamedTuple):
    """All that changes."""

    requests: Records
    """Shape (num_requests,)."""
    places: Records
    """Shape (max_num_seqs,)."""
    engine: Any
    """One record."""
    amounts: Any
    """What the step's price depends on, one record."""
    gaps: Records
    """Shape (GAPS + 4 * max_num_seqs,)."""
    products_ns: npt.NDArray[np.int64]
    """What `PowerCap` says, shape (num_tokens + 1,)."""
    priced_ns: Floats
    """Parts of all steps' prices by source, and those of extrapolated ones, shape (num_sources + 1,)."""
    scratch: Scratch
    """Room to price in."""


def settings_of(config: SchedulerConfig, host: HostTimes, cap: PowerCap | None, *, is_closed: bool) -> Any:  # noqa: ANN401 - a record
    """Return the settings of an engine that serves a closed loop or an open one."""
    settings = new_records(1, SETTINGS)[0]
    for name in SETTINGS.names or ():
        for known in (config, host, cap):
            if hasattr(known, name):
                settings[name] = getattr(known, name)
    settings["watermark_blocks"] = int(config.watermark * config.num_kv_blocks)
    settings["is_closed"] = is_closed
    return settings


def new_state(
    workload: Sequence[Request], config: SchedulerConfig, sheet: PriceSheet, cap: PowerCap | None, concurrency: int | None
) -> LoopState:
    """Return the state before anything has arrived."""
    number = len(workload)
    requests = new_records(number, REQUEST)
    for name in ("scheduled_ns", "first_token_ns", "finish_ns", "token_ns", "older", "newer"):
        requests[name] = -1
    requests["arrival_ns"] = column(workload, "arrival_ns")
    requests["prompt"] = requests["known"] = column(workload, "num_prompt_tokens")
    requests["total"] = requests["prompt"] + column(workload, "num_output_tokens")
    engine = new_records(1, ENGINE)[0]
    engine["num_sent"] = number if concurrency is None else min(concurrency, number)
    engine["num_free"] = config.num_kv_blocks - 1  # one is the null block
    engine["oldest"] = engine["newest"] = -1
    return LoopState(
        requests,
        new_records(config.max_num_seqs, PLACE),
        engine,
        new_records(1, AMOUNTS)[0],
        new_records(GAPS + 4 * config.max_num_seqs, GAP),
        np.zeros(1, np.int64) if cap is None else cap.products_ns,
        np.zeros(len(sheet.tokens_ns) + 1),
        new_scratch(_SLOTS),
    )
