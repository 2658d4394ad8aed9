"""Roofline and features of the families: what a point's latency on a device is learnt from.

Beside sizes, FLOPs and bytes these are counts of the tiles that kernels cut the work into, and of the waves that those take on
the device's multiprocessors: a last wave that is hardly filled takes as long as a full one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.dtypes import item_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.predict._features import AttentionWork
    from dooly.predict._hardware import Hardware
    from dooly.predict._kinds import AttentionShape, Experts, LatentAttention

    Floats = npt.NDArray[np.float64]

_TILES = (64, 128, 256)
_QUERY_TILE = 128
_BYTES = 2.0
"""Of an element at full precision."""
_PACKED_BYTES = {"fp8_block": 1.0, "mxfp4": 17 / 32, "w4a16": 9 / 16, "w4a16_mxfp4": 17 / 32}
"""Of a weight with its part of a scale, by how it is quantised."""


def element_bytes(dtype: str) -> float:
    """Return the bytes of a weight by the element type of its kind, quantised or not."""
    return _PACKED_BYTES[dtype] if dtype in _PACKED_BYTES else float(item_bytes(dtype))


def linear_inputs(hardware: Hardware, m: Floats, n: Floats, k: Floats, item_bytes: float) -> tuple[Floats, Floats]:
    """Return roofline in nanoseconds, shape (num_points,), and features of products x[m, k] · weight[n, k].

    Args:
        hardware: The device.
        m: Rows, shape (num_points,), as the others.
        n: Outputs.
        k: Inputs.
        item_bytes: Bytes of an element of inputs and weight; outputs have two, and elements of one are multiplied twice as fast.
    """
    flops, traffic = 2 * m * n * k, item_bytes * (m * k + n * k) + _BYTES * m * n
    columns = [m, n, k, flops, traffic, flops / traffic]
    for tile in _TILES:
        tiles = np.ceil(m / tile) * np.ceil(n / _TILES[1])
        waves = np.ceil(tiles / hardware.num_sms)
        columns += [tiles, waves, waves * hardware.num_sms / tiles, np.ceil(m / tile) * tile / m]
    return hardware.roofline_ns(flops * item_bytes / _BYTES, traffic), np.log(np.column_stack(columns))


def decode_inputs(hardware: Hardware, shape: AttentionShape, work: AttentionWork) -> tuple[Floats, Floats]:
    """Return roofline and features of the decodes of batches, as `linear_inputs` does; rows without decodes are meaningless."""
    count, read = np.maximum(work.num_decodes, 1), np.maximum(work.decode_kv_tokens, 1)
    flops, traffic = _attention_cost(shape, count, read, read)
    blocks = count * shape.num_kv_heads
    return hardware.roofline_ns(flops, traffic), _logs(
        shape, flops, traffic, count, read / count, blocks, blocks / hardware.num_sms, np.ceil(blocks / hardware.num_sms)
    )


def prefill_inputs(hardware: Hardware, shape: AttentionShape, work: AttentionWork) -> tuple[Floats, Floats]:
    """Return roofline and features of the prefills of batches, as `linear_inputs` does; rows without prefills are meaningless.

    A query's own length and the keys that it sees enter apart, so that a chunk behind a context is no other thing than a prompt.
    """
    queries, pairs = np.maximum(work.prefill_tokens, 1), np.maximum(work.prefill_pairs, 1)
    flops, traffic = _attention_cost(shape, queries, pairs, np.maximum(work.prefill_kv_tokens, 1))
    tiles = shape.num_heads * work.num_prefills * np.ceil(queries / np.maximum(work.num_prefills, 1) / _QUERY_TILE)
    tiles = np.maximum(tiles, 1)
    waves = np.ceil(tiles / hardware.num_sms)
    return hardware.roofline_ns(flops, traffic), _logs(
        shape, flops, traffic, queries, pairs / queries, tiles, waves, waves * hardware.num_sms / tiles
    )


def latent_decode_inputs(hardware: Hardware, shape: LatentAttention, work: AttentionWork) -> tuple[Floats, Floats]:
    """Return roofline and features of decodes over a compressed cache; heads' queries are brought to its width, not it to theirs.

    Rows without decodes are meaningless.
    """
    count, read = np.maximum(work.num_decodes, 1), np.maximum(work.decode_kv_tokens, 1)
    flops = 2 * shape.num_heads * (2 * shape.rank + shape.rope_size) * read + 2 * count * shape.expansion
    traffic = _latent_traffic(shape, count, read)
    blocks = count * np.ceil(shape.num_heads / _TILES[0])
    columns = (flops, traffic, flops / traffic, count, read / count, blocks, np.ceil(blocks / hardware.num_sms))
    return hardware.roofline_ns(flops, traffic), _with_sizes((shape.num_heads,), *columns)


def latent_prefill_inputs(hardware: Hardware, shape: LatentAttention, work: AttentionWork) -> tuple[Floats, Floats]:
    """Return roofline and features of prefills over a compressed cache, of which each head's keys and values are made first.

    Rows without prefills are meaningless.
    """
    queries, pairs = np.maximum(work.prefill_tokens, 1), np.maximum(work.prefill_pairs, 1)
    read = np.maximum(work.prefill_kv_tokens, 1)
    head = shape.nope_size + shape.rope_size + shape.value_size
    flops = 2 * shape.num_heads * head * pairs + 2 * read * shape.expansion
    traffic = _latent_traffic(shape, queries, read) + _BYTES * shape.num_heads * head * read
    tiles = np.maximum(shape.num_heads * work.num_prefills * np.ceil(queries / np.maximum(work.num_prefills, 1) / _QUERY_TILE), 1)
    waves = np.ceil(tiles / hardware.num_sms)
    columns = (flops, traffic, flops / traffic, queries, pairs / queries, read, tiles, waves, waves * hardware.num_sms / tiles)
    return hardware.roofline_ns(flops, traffic), _with_sizes((shape.num_heads,), *columns)


def _latent_traffic(shape: LatentAttention, queries: Floats, read: Floats) -> Floats:
    cached = item_bytes(shape.dtype) * (shape.rank + shape.rope_size) * (read + queries)
    head = shape.nope_size + shape.rope_size + shape.value_size
    return cached + _BYTES * (shape.expansion + queries * shape.num_heads * head)


def experts_inputs(hardware: Hardware, shape: Experts, m: Floats) -> tuple[Floats, Floats]:
    """Return roofline and features of a mixture of experts over `m` tokens, as `linear_inputs` does.

    Tokens are dealt out in turn, as where it was measured: M choices reach M experts, whose weights are read, or all.
    """
    share = shape.num_local_experts / shape.num_experts
    choices = m * shape.top_k * share
    reached = np.minimum(choices, shape.num_local_experts)
    weights = 3 * shape.hidden_size * shape.intermediate_size
    flops = 2 * choices * weights
    traffic = element_bytes(shape.dtype) * reached * weights
    traffic = traffic + 2 * choices * (2 * shape.hidden_size + 3 * shape.intermediate_size)
    each = np.maximum(choices / np.maximum(reached, 1e-9), 1)
    tiles = [reached * np.ceil(each / t) * np.ceil(2 * shape.intermediate_size / _TILES[1]) for t in _TILES]
    waves = [np.ceil(t / hardware.num_sms) for t in tiles]
    sizes = (shape.hidden_size, shape.intermediate_size, shape.top_k, shape.num_experts, shape.num_local_experts)
    columns = [m, choices, reached, each, flops, traffic, flops / traffic, *tiles, *waves]
    features: Floats = np.log(np.column_stack([*columns, *(np.full(len(m), float(size)) for size in sizes)]))
    return hardware.roofline_ns(flops, traffic), features


def mixed_inputs(hardware: Hardware, shape: AttentionShape, work: AttentionWork) -> tuple[Floats, Floats]:
    """Return roofline and features of attention over batches of any kind, decodes and prefills together, equal or not.

    For a shape that was measured so itself: how unequal decodes are enters by the longest and the spread over the mean.
    """
    flops, traffic = _attention_cost(
        shape,
        work.num_decodes + work.prefill_tokens,
        work.decode_kv_tokens + work.prefill_pairs,
        work.decode_kv_tokens + work.prefill_kv_tokens,
    )
    count = np.maximum(work.num_decodes, 1)
    mean = np.maximum(work.decode_kv_tokens / count, 1)
    spread = np.sqrt(np.maximum(work.decode_kv_squares / count - mean**2, 0)) / mean
    amounts = (work.columns(), mean, work.decode_longest, flops, traffic, work.prefill_pairs / np.maximum(work.prefill_tokens, 1))
    features: Floats = np.column_stack([*(np.log1p(values) for values in amounts), spread, work.decode_longest / mean])
    return hardware.roofline_ns(flops, traffic), features


def _attention_cost(shape: AttentionShape, queries: Floats, pairs: Floats, kv_tokens: Floats) -> tuple[Floats, Floats]:
    cache = 2 * shape.num_kv_heads * shape.head_size * item_bytes(shape.dtype) * (kv_tokens + queries)
    return 4 * shape.num_heads * shape.head_size * pairs, cache + 4 * shape.num_heads * shape.head_size * queries


def _logs(shape: AttentionShape, *columns: Floats) -> Floats:
    window = () if shape.window is None else (shape.window,)
    return _with_sizes(
        (shape.num_heads, shape.num_kv_heads, shape.head_size, shape.num_heads / shape.num_kv_heads, *window), *columns
    )


def _with_sizes(sizes: tuple[float, ...], *columns: Floats) -> Floats:
    logs: Floats = np.log(np.column_stack([*columns, *(np.full(len(columns[0]), float(size)) for size in sizes)]))
    return logs
