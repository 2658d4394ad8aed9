"""Which batches to measure: decodes, chunked prefills over a context, several prefills, unequal contexts, mixed batches.

Every batch gives a point to each operation: its number of tokens to the linear layers, its number of requests to logits and
sampling, the whole batch to attention and to the step's own work. The grid is dense where latency bends and geometric elsewhere.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from dooly.batch import Batch
from dooly.catalog._points import DECODE_GROWTH_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dooly.engines import ServingConfig

_CONTEXTS = (16, 256, 1024, 3072, 8192)
_TOKENS = (
    *(8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024),
    *(1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192),
)
_UNEQUAL = (4, 16, 48, 96, 160)
_REQUESTS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 224, 256)


def measurement_batches(serving: ServingConfig) -> tuple[Batch, ...]:
    """Return the batches that cover what an engine with these limits runs, without repeats."""
    fitting = (b for b in _batches(serving) if _fits(b, serving))
    return tuple(dict.fromkeys(fitting))


def _batches(serving: ServingConfig) -> Iterator[Batch]:
    yield from _prefills(serving)
    yield from _decodes(serving)
    yield from _mixed(serving)


def _prefills(serving: ServingConfig) -> Iterator[Batch]:
    longest = max(1, min(serving.max_num_batched_tokens, serving.max_model_len - 1))
    for num_tokens in (*(t for t in _TOKENS if t < longest), longest):
        yield Batch((num_tokens,), (0,), 1)
    for num_tokens in (32, 128, 512, 1024):
        for context in (256, 1024, serving.max_model_len - num_tokens - 1):
            yield Batch((num_tokens,), (max(0, context),), 1)
    # The last chunk of the longest prompt that fills the budget: no other reads more.
    yield Batch((longest,), (max(0, serving.max_model_len - longest - 1),), 1)
    for count, num_tokens in ((2, 64), (4, 64), (4, 256), (8, 128), (16, 32)):
        yield Batch((num_tokens,) * count, (0,) * count, count)
    yield Batch((200, 50, 120), (0, 300, 700), 3)
    # A budget beyond one sequence is filled by several.
    most = min(serving.max_num_batched_tokens, longest * serving.max_num_seqs)
    for num_tokens in (*(t for t in _TOKENS if longest < t < most), most):
        count = ceil(num_tokens / longest)
        yield Batch(tuple((num_tokens + i) // count for i in range(count)), (0,) * count, count)
    whole, rest = divmod(most, longest)
    prompts = (longest,) * whole + ((rest,) if rest > 1 else ())
    yield Batch(prompts, (0,) * len(prompts), len(prompts))


def _decodes(serving: ServingConfig) -> Iterator[Batch]:
    for count in (*(c for c in _REQUESTS if c < serving.max_num_seqs), serving.max_num_seqs):
        for context in (*_CONTEXTS, serving.max_model_len - DECODE_GROWTH_TOKENS - 1):
            yield Batch((1,) * count, (max(1, context),) * count)
    # Requests of one batch are unequal in an engine: attention waits for its longest, and reads the sum.
    for count in (*(c for c in _UNEQUAL if c < serving.max_num_seqs), serving.max_num_seqs):
        for longest in (1024, serving.max_model_len - DECODE_GROWTH_TOKENS - 1):
            yield Batch((1,) * count, _unequal(count, longest))


def _unequal(count: int, longest: int) -> tuple[int, ...]:
    """Return contexts of 16 to `longest` tokens, as many short as long ones on a logarithmic scale, in no order."""
    ratio = max(1.0, longest / 16)
    places = ((i * 0.6180339887498949) % 1 for i in range(1, count + 1))  # the golden ratio's multiples: even, without order
    return tuple(round(16 * ratio**place) for place in places)


def _mixed(serving: ServingConfig) -> Iterator[Batch]:
    most = max(1, serving.max_num_seqs - 1)
    rest = max(1, min(serving.max_num_batched_tokens - most, serving.max_model_len // 2))
    longest = max(1, serving.max_model_len - DECODE_GROWTH_TOKENS)
    for num_decodes, context, prefill, prefix in (
        (1, 256, 32, 0),
        (4, 512, 128, 0),
        (4, 128, 512, 512),
        (8, 256, 64, 256),
        (16, 512, 256, 0),
        (16, 1024, 1024, 0),
        (32, 256, 512, 0),
        (48, 512, 128, 0),
        (most, max(1, serving.max_model_len // 4), rest, 0),
        (most, max(1, longest - 1), rest, max(0, longest - rest)),
    ):
        yield Batch((1,) * num_decodes + (prefill,), (context,) * num_decodes + (prefix,), 1)
    yield Batch((1,) * 8 + (100, 60), (200,) * 8 + (0, 0), 2)
    for num_decodes in (*(c for c in _UNEQUAL if c < most), most):
        contexts = _unequal(num_decodes, serving.max_model_len - DECODE_GROWTH_TOKENS - 1)
        for prefill in (128, 512, serving.max_num_batched_tokens - num_decodes):
            yield Batch((1,) * num_decodes + (max(1, prefill),), (*contexts, 0), 1)


def _fits(batch: Batch, serving: ServingConfig) -> bool:
    longest = max(n + c for n, c in zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True))
    room = DECODE_GROWTH_TOKENS if batch.num_new_requests < batch.num_reqs else 1
    return (
        batch.num_reqs <= serving.max_num_seqs
        and batch.num_tokens <= serving.max_num_batched_tokens
        and longest + room <= serving.max_model_len
    )
