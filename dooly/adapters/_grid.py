"""The points that an exporter prices: sizes of steps, and attention over chunks, contexts and decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dooly.predict import BatchArrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.engines import ServingConfig
    from dooly.predict import LatencyModel

    Ints = npt.NDArray[np.int64]

_ALL_BELOW = 32
_GROWTH = 1.06
"""Between sizes beyond: what readers interpolate linearly bends little within."""
_LEAST_TOKENS = 16
"""Of a chunk, and of a context."""
_CHUNKS, _COUNTS, _CONTEXTS, _MIXED_BEFORES, _MIXED_CONTEXTS = 2**0.5, 2**0.25, 1.3, 4.0, 4.0
"""Between chunks, numbers of decodes, contexts of either alone, and those of both together."""


class AttentionPoint(NamedTuple):
    """A batch of one chunk behind a context, beside decodes of one context."""

    chunk: int
    """Tokens of the chunk; 0 where there is none."""
    chunk_context: int
    """Positions before it."""
    num_decodes: int
    """Decodes."""
    decode_context: int
    """Positions that each decode reads, its own included; 0 where there is none."""


class Limits(NamedTuple):
    """How far an export goes: as far as the engine's settings and what was measured."""

    num_tokens: int
    """Tokens of a step."""
    num_reqs: int
    """Requests of a step."""
    context: int
    """Positions that a request reads."""

    @classmethod
    def of(cls, latency: LatencyModel, serving: ServingConfig) -> Limits:
        """Return the limits of a latency model in its serving settings."""
        domain = latency.domain
        num_reqs, context = min(domain.num_reqs, serving.max_num_seqs), min(domain.context, serving.max_model_len)
        # Requests of the longest context may fill less than a step may hold.
        return cls(min(domain.num_tokens, serving.max_num_batched_tokens, num_reqs * context), num_reqs, context)


def sizes_up_to(limit: int, also: Sequence[int] = ()) -> Ints:
    """Return growing sizes from 1 to a limit: all small ones, then by a few percent, and those beside that are below it."""
    grown = _ALL_BELOW * _GROWTH ** np.arange(max(0.0, np.log(max(limit, 1) / _ALL_BELOW) / np.log(_GROWTH)))
    small = np.arange(1, min(_ALL_BELOW, limit) + 1)
    beside = [size for size in also if size <= limit]
    # A step beyond a captured size runs the next graph: the size after it stands too.
    after = [size + 1 for size in beside if size < limit]
    return np.unique([*small, *np.rint(grown).astype(np.int64), *beside, *after, limit])


def grown(least: int, limit: int, factor: float) -> list[int]:
    """Return whole numbers from `least`, each so many times the one before, up to a limit, which is the last."""
    steps = np.arange(1 + np.log(max(limit, least) / least) / np.log(factor))
    found = np.unique(np.rint(least * factor**steps).astype(int)).tolist()
    return [*(value for value in found if value < limit), limit]


def attention_points(limits: Limits) -> list[AttentionPoint]:
    """Return chunks behind contexts beside decodes: any number of decodes with any chunk, since readers look up pairs of these.

    Contexts lie closer where there are decodes alone, or a chunk alone, which most steps are.
    """
    chunks = grown(_LEAST_TOKENS, min(limits.num_tokens, limits.context), _CHUNKS)
    found = []
    for chunk in (0, *chunks):
        for num_decodes in (0, *grown(1, limits.num_reqs, _COUNTS)):
            if chunk + num_decodes > limits.num_tokens or num_decodes + (chunk > 0) > limits.num_reqs or not chunk + num_decodes:
                continue
            is_mixed = chunk > 0 and num_decodes > 0
            befores = grown(_LEAST_TOKENS, limits.context, _MIXED_BEFORES if is_mixed else _CONTEXTS)
            contexts = grown(_LEAST_TOKENS, limits.context, _MIXED_CONTEXTS if is_mixed else _CONTEXTS)
            found += [
                AttentionPoint(chunk, before, num_decodes, context)
                for before in ([0, *(before for before in befores if before + chunk <= limits.context)] if chunk else [0])
                for context in (contexts if num_decodes else [0])
            ]
    return found


def prompts_of(num_tokens: Ints, context: int) -> BatchArrays:
    """Return steps of prompts alone, as few of them as a context lets hold so many tokens.

    Args:
        num_tokens: Tokens of each step, shape (num_steps,).
        context: Tokens that a prompt may have.
    """
    before = context * np.arange(-(-int(num_tokens.max()) // context))
    new = np.clip(num_tokens[:, None] - before, 0, context)
    return BatchArrays(new, np.zeros_like(new), (new > 0).sum(axis=1))


def batches_of(points: Sequence[AttentionPoint]) -> BatchArrays:
    """Return the points as batches."""
    width = 1 + max(point.num_decodes for point in points)
    new, computed = np.zeros((len(points), width), dtype=np.int64), np.zeros((len(points), width), dtype=np.int64)
    for row, point in enumerate(points):
        new[row, 0], computed[row, 0] = point.chunk, point.chunk_context if point.chunk else 0
        new[row, 1 : 1 + point.num_decodes] = 1
        computed[row, 1 : 1 + point.num_decodes] = max(point.decode_context - 1, 0)
    fresh = ((new > 1) & (computed == 0)).sum(axis=1)
    return BatchArrays(new, computed, fresh)
