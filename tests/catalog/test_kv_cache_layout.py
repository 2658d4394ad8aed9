from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dooly.catalog import kv_cache_layout, operation_table
from dooly.engines import ServingConfig, find_model
from dooly.errors import UnsupportedModelError
from dooly.kv_cache_groups import FULL_ATTENTION, AttentionKind, KVCacheGroup

if TYPE_CHECKING:
    from dooly.engines import ModelSource
    from dooly.tracing import TracedModel

KV = {"num_heads": 64, "num_kv_heads": 8, "head_size": 128, "head_size_v": 128, "kv_cache_dtype": "auto", "attn_type": "decoder"}
STATE = {"mamba_type": "mamba2_attn", "state_shapes": "(3, 20480), (256, 64, 256)", "state_dtypes": "bfloat16, float32"}
PLAIN_STATE = {**STATE, "mamba_type": "linear_attn"}
FULL = KVCacheGroup()


def window(tokens: int) -> KVCacheGroup:
    """Return a group of layers with a sliding window."""
    return KVCacheGroup(AttentionKind.SLIDING_WINDOW, tokens)


def table(*layers: tuple[dict[str, Any], int]) -> TracedModel:
    """Return a table of operations with attention layers of these attributes, each so many times."""
    llama = operation_table(find_model("llama-3.1-8b"), ServingConfig())
    (attention,) = (op for op in llama.operations if op.depends_on_context)
    made = (
        replace(attention, module=f"layers.{index}", count=count, attributes=attributes, placements=(), calls=())
        for index, (attributes, count) in enumerate(layers)
    )
    return replace(llama, model="made-up", operations=tuple(made))


@pytest.mark.parametrize(
    ("name", "groups", "block_bytes"),
    [
        ("llama-3.1-8b", FULL_ATTENTION, 16 * 32 * 2 * 8 * 128 * 2),
        ("gemma-2-9b", (window(4096), FULL), 16 * 21 * 2 * 8 * 256 * 2),
        ("gpt-oss-20b", (window(128), FULL), 16 * 12 * 2 * 8 * 64 * 2),
        ("command-r7b", (*[window(4097)] * 3, FULL), 16 * 8 * 2 * 8 * 128 * 2),
        ("deepseek-v2-lite", FULL_ATTENTION, 16 * 27 * (512 + 64) * 2),
    ],
)
def test_listed_models_by_hand(name: str, groups: tuple[KVCacheGroup, ...], block_bytes: int) -> None:
    """Layers of one kind share blocks; of several, groups of as many layers each do."""
    layout = kv_cache_layout(operation_table(find_model(name), ServingConfig()), "bfloat16", 16)
    assert (layout.groups, layout.block_size, layout.block_bytes) == (groups, 16, block_bytes)


def test_recurrent_states_set_the_size_of_blocks() -> None:
    """54 states of 16.9 MB beside 10 attention layers of 4 KiB a token: 4,128 tokens fill as much, and take it for 10 layers."""
    layout = kv_cache_layout(table((STATE, 54), (KV, 10)), "bfloat16", 16)
    assert layout.block_size == 16 * -(-(3 * 20480 * 2 + 256 * 64 * 256 * 4) // (16 * 4096)) == 4128
    assert layout.groups == (*[KVCacheGroup(AttentionKind.MAMBA, None, 1)] * 6, FULL)
    assert layout.block_bytes == 10 * 4128 * 4096


def test_recurrent_states_alone() -> None:
    """A block is a request's states, of all layers."""
    layout = kv_cache_layout(table((PLAIN_STATE, 4)), "bfloat16", 16)
    assert layout.groups == (KVCacheGroup(AttentionKind.MAMBA),)
    assert layout.block_bytes == 4 * (3 * 20480 * 2 + 256 * 64 * 256 * 4)


@pytest.mark.parametrize(
    ("layers", "groups", "num_layers"),
    [
        ([({"attention_chunk_size": 8192}, 36), ({}, 12)], (FULL,), 48),
        ([({"attention_chunk_size": 8192}, 36)], (KVCacheGroup(AttentionKind.CHUNKED_LOCAL_ATTENTION, 8192),), 36),
        ([({"sliding_window": 128}, 7)], (window(128),), 7),
        ([({"sliding_window": 128}, 12), ({}, 13)], (window(128), FULL), 13),
        ([({}, 4), ({"sliding_window": 128}, 10)], (FULL, *[window(128)] * 3), 4),
        ([({"sliding_window": 64}, 4), ({"sliding_window": 128}, 4)], (window(64), window(128)), 4),
        ([({"sliding_window": -1}, 4), ({"sliding_window": None}, 4)], (FULL,), 8),
    ],
    ids=["chunks beside full", "chunks", "window", "padded", "ragged", "two windows", "no window"],
)
def test_groups_by_hand(layers: list[tuple[dict[str, Any], int]], groups: tuple[KVCacheGroup, ...], num_layers: int) -> None:
    """Chunks beside full attention are kept whole; groups get the fewest layers of a kind, or the most where these are close."""
    layout = kv_cache_layout(table(*[(KV | changes, count) for changes, count in layers]), "bfloat16", 16)
    assert layout.groups == groups
    assert layout.block_bytes == num_layers * 16 * 4096


@pytest.mark.parametrize(
    ("attributes", "rule"),
    [
        ({"kind": "IndexerCache", "num_kv_heads": None}, r"layers\.1 and 4 like it keeps a cache of its own \(IndexerCache\)"),
        (KV | {"attn_type": "encoder_only"}, r"layers\.1 and 4 like it runs encoder_only attention"),
        (KV | {"num_kv_heads": 4, "sliding_window": 64}, r"layers that keep different tokens take unequal room \(65536 bytes of"),
    ],
)
def test_caches_that_are_not_modelled_are_refused(attributes: dict[str, Any], rule: str) -> None:
    """One line that names the layers."""
    with pytest.raises(UnsupportedModelError, match=rf"^made-up: {rule}.*; simulate a model .*$"):
        kv_cache_layout(table((KV, 5), (attributes, 5)), "bfloat16", 16)


def test_a_model_without_a_cache_is_refused() -> None:
    """Where nothing is cached there is no number of blocks."""
    with pytest.raises(UnsupportedModelError, match=r"^made-up: no layer keeps a KV cache; .*$"):
        kv_cache_layout(table(), "bfloat16", 16)


@pytest.mark.engine
@pytest.mark.parametrize("name", ["gemma-2-9b", "command-r7b", "nvidia--Nemotron-H-56B-Base-8K"])
def test_the_same_groups_as_the_engine(name: str) -> None:
    """Whole models have the groups that vLLM makes of their layers, and as many bytes a block, from its own block size."""
    folder = Path(__file__).parents[2] / "../shared/configs" / name
    if name.startswith("nvidia") and not folder.is_dir():
        pytest.skip(f"needs {name}'s config.json in ../shared/configs")
    theirs, block_bytes, before, block_size, layers = engine_layout(find_model(str(folder) if folder.is_dir() else name))
    layout = kv_cache_layout(table(*layers), "bfloat16", before)
    assert [(group.kind, group.window, group.num_prefill_checkpoint_blocks) for group in layout.groups] == theirs
    assert (layout.block_bytes, layout.block_size) == (block_bytes, block_size)


def engine_layout(
    model: ModelSource,
) -> tuple[list[tuple[str, int | None, int]], int, int, int, list[tuple[dict[str, Any], int]]]:
    """Return vLLM's groups, its bytes of a block and its block size before and after, and the attributes of the layers."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.models.config import MambaModelConfig
    from vllm.platforms import current_platform
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.kv_cache_interface import get_kv_cache_spec_kind

    from dooly.engines.vllm._build import meta_model
    from dooly.engines.vllm._config import engine_config
    from dooly.engines.vllm._stateful import stateful_attributes

    serving = ServingConfig()
    config = engine_config(model, serving)
    cache = config.cache_config
    cache.enable_prefix_caching, cache.kv_cache_layout, before = True, "LBNHC", cache.block_size
    with meta_model(model, serving, config, 0) as (network, _sizes):
        if config.model_config.is_hybrid:
            cache.mamba_block_size = None
            MambaModelConfig.verify_and_update_config(config)
        current_platform.update_block_size_for_backend(config)
        layers = [(n, m) for n, m in network.named_modules() if isinstance(m, AttentionLayerBase)]
        groups = kv_cache_utils.get_kv_cache_groups(config, {name: layer.get_kv_cache_spec(config) for name, layer in layers})
        attributes = [dict(stateful_attributes(layer) or {}) for _name, layer in layers]
    specs = [group.kv_cache_spec for group in groups]
    theirs = [
        (
            get_kv_cache_spec_kind(spec).value,
            getattr(spec, "sliding_window", None),
            getattr(spec, "num_prefill_checkpoint_blocks", 0),
        )
        for spec in specs
    ]
    block_bytes = max(spec.page_size_bytes * len(group.layer_names) for spec, group in zip(specs, groups, strict=True))
    return (
        theirs,
        block_bytes,
        before,
        cache.block_size,
        [(each, attributes.count(each)) for index, each in enumerate(attributes) if attributes.index(each) == index],
    )
