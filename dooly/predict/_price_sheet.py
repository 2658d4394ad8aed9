"""The price sheet of a latency model: what its steps take, as arrays for compiled loops."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import numpy as np

from dooly.dtypes import item_bytes
from dooly.predict._families import AttentionFamily
from dooly.predict._hardware import ROOFLINE_LEAST_NS
from dooly.predict._kinds import AttentionShape
from dooly.predict._measured import MeasuredAttention
from dooly.predict._sources import SOURCES
from dooly.prices import AttentionPrice, Forest, PriceSheet

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.predict._domain import Domain
    from dooly.predict._fitted import FittedOperation
    from dooly.prices._forest import Inverse

    Floats = npt.NDArray[np.float64]
    Runs = Sequence[tuple[FittedOperation, int]]

_NUM_AMOUNTS = 7
"""Features of a family's attention that depend on the step; what depends on the shape comes behind."""
_NUM_LOGS = 11
"""Features of mixed attention that are logarithms, of one more than the amount; two ratios come behind."""


def attention_prices(runs: Runs) -> tuple[AttentionPrice, ...] | None:
    """Return the prices of attention; None where one of the operations is none that compiled loops know.

    Args:
        runs: The operations that neither tokens nor requests decide alone, and how often a step runs each.
    """
    times: dict[int, int] = {}
    for fitted, count in runs:
        times[id(fitted.latency)] = times.get(id(fitted.latency), 0) + count
    distinct = {id(fitted.latency): fitted for fitted, _ in runs}
    found = [_attention_price(fitted, times[key]) for key, fitted in distinct.items()]
    prices = tuple(price for price in found if price is not None)
    return prices if len(prices) == len(found) else None


def price_sheet(tokens_ns: Floats, requests_ns: Floats, prices: tuple[AttentionPrice, ...], domain: Domain) -> PriceSheet:
    """Return the price sheet of a model.

    Args:
        tokens_ns: Nanoseconds of what tokens decide, by source and tokens from 0, shape (num_sources, num_tokens + 1).
        requests_ns: The same by requests.
        prices: The attention.
        domain: The limits of steps.
    """
    reach = domain.reach
    beyond = (inf, inf, inf) if reach is None else (reach.decode_kv_tokens, reach.prefill_pairs, reach.num_tokens)
    limits = (domain.num_tokens, domain.num_reqs, domain.context)
    return PriceSheet(np.zeros(6), tokens_ns, requests_ns, prices, *limits, beyond)


def _attention_price(fitted: FittedOperation, num_runs: int) -> AttentionPrice | None:
    """Return the price of full attention by families or by a regressor of its own; None for any other operation."""
    latency = fitted.latency
    if not isinstance(latency, AttentionFamily | MeasuredAttention) or fitted.work.window is not None:
        return None
    shape, hardware = latency.shape, latency.hardware
    if not isinstance(shape, AttentionShape) or shape.window is not None:
        return None
    if isinstance(latency, AttentionFamily):
        inverses: tuple[Inverse | float, ...] = (*(np.exp,) * _NUM_AMOUNTS, *_logs_of(shape))
        forests = tuple(Forest.of(family.trees, inverses) for family in (latency.decodes, latency.prefills))
    else:
        forests = (Forest.of(latency.regressor.trees, (*(np.expm1,) * _NUM_LOGS, np.asarray, np.asarray)),)
    return AttentionPrice(
        num_runs,
        SOURCES.index(latency.source),
        forests,
        *(shape.num_heads, shape.num_kv_heads, shape.head_size, float(item_bytes(shape.dtype)), hardware.num_sms),
        *(hardware.flops_per_s, hardware.memory_bytes_per_s, ROOFLINE_LEAST_NS, hardware.launch_ns, fitted.gap_ns),
    )


def _logs_of(shape: AttentionShape) -> tuple[float, ...]:
    """Return the features of a family's attention that the shape alone decides."""
    sizes = (shape.num_heads, shape.num_kv_heads, shape.head_size, shape.num_heads / shape.num_kv_heads)
    return tuple(float(np.log(float(size))) for size in sizes)
