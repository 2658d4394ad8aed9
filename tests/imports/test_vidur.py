"""Profiles of Vidur: times find their operations by widths and heads, and what finds none is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.imports._vidur import read_vidur
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {
    "embed_tokens": "emb",
    "qkv_proj": "attn_pre_proj",
    "rotary_emb": "attn_rope",
    "o_proj": "attn_post_proj",
    "gate_up_proj": "mlp_up_proj",
    "act_fn": "mlp_act",
    "down_proj": "mlp_down_proj",
}


def test_times_find_their_operations(profiles: Path, table: TracedModel) -> None:
    """Products by their widths; the norm that adds takes Vidur's norm and its addition, the first one only the norm."""
    placed = {rows.operation.name: rows for rows in read_vidur(profiles, table).placed}
    assert {name: placed[name].rows for name in NAMES} == {name: f"mlp.csv {time}" for name, time in NAMES.items()}
    assert placed["post_attention_layernorm"].rows == "mlp.csv input_layernorm + add"
    assert placed["input_layernorm"].rows == "mlp.csv input_layernorm"
    assert placed["qkv_proj"].latency_ns.tolist() == pytest.approx([30_001, 30_064, 30_064, 30_512, 32_048])
    assert [batch.num_tokens for batch in placed["qkv_proj"].batches] == [1, 64, 64, 512, 2048]


def test_attention_takes_its_write_to_the_cache_too(profiles: Path, table: TracedModel) -> None:
    """Decodes of one context, and a chunk behind one."""
    (rows,) = (rows for rows in read_vidur(profiles, table).placed if rows.operation.name == "attn")
    found = dict(zip(rows.batches, rows.latency_ns, strict=True))
    assert found[Batch((1,) * 4, (512,) * 4)] == pytest.approx(1000 * (10 + 2 + 2.048))
    assert found[Batch((64,), (1024,))] == pytest.approx(1000 * (20 + 2 + 64 * 1056 / 10000))


def test_what_finds_no_place_is_told(profiles: Path, table: TracedModel) -> None:
    """Rows of other ranks, and a norm that is the other's twin; facts are those of the path and the columns."""
    found = read_vidur(profiles, table)
    assert found.unplaced == {"mlp.csv of other ranks": 5, "mlp.csv post_attention_layernorm": 5}
    assert (found.facts["device"], found.facts["block_size"], found.facts["attention_backend"]) == ("a100", 16, "FLASHINFER")


def test_another_model_s_profiles_are_not_placed(profiles: Path) -> None:
    """Where widths are others, what tells no widths is not the model's either; attention of other heads is named."""
    found = read_vidur(profiles, operation_table(find_model("qwen3-32b"), ServingConfig()))
    assert found.placed == ()
    assert found.unplaced["mlp.csv emb"] == 5
    assert found.unplaced["attention.csv of 32 heads and 8 key/value heads of 128"] == 18


def test_wider_element_types_are_not_placed(profiles: Path, table: TracedModel) -> None:
    """Kernels of 16 bits tell nothing of a model in float32."""
    text = json.dumps(table.to_json()).replace("bfloat16", "float32")
    assert read_vidur(profiles, TracedModel.from_json(json.loads(text))).placed == ()


@pytest.mark.parametrize(
    ("name", "spoil", "rule"),
    [
        ("mlp.csv", ("n_expanded_embd", "x"), r"mlp\.csv: lacks the column n_expanded_embd"),
        (
            "attention.csv",
            ("attn_decode.median", "attn_decode.mean"),
            r"attention\.csv: lacks the column time_stats\.attn_decode",
        ),
        ("mlp.csv", ("0.03", "\udcff"), r"mlp\.csv: cannot be read \('utf-8' codec"),
    ],
)
def test_a_profile_that_is_none_is_refused(
    profiles: Path, table: TracedModel, name: str, spoil: tuple[str, str], rule: str
) -> None:
    """The message names the file and what it lacks."""
    file = profiles / name
    file.write_text(file.read_text().replace(*spoil), errors="surrogateescape")
    with pytest.raises(InvalidInputError, match=rule):
        read_vidur(profiles, table)


def test_ranks_that_are_not_there_are_refused(profiles: Path) -> None:
    """Attention was measured on one rank alone."""
    table = operation_table(find_model("llama-3.1-8b"), ServingConfig(tensor_parallel_size=2))
    with pytest.raises(InvalidInputError, match=r"attention\.csv: holds nothing for 2 tensor-parallel ranks, only for 1"):
        read_vidur(profiles, table)


def test_a_folder_without_profiles_is_refused(tmp_path: Path, table: TracedModel) -> None:
    """The message says what to give."""
    with pytest.raises(InvalidInputError, match=r"holds neither mlp\.csv nor attention\.csv; give a model's folder"):
        read_vidur(tmp_path, table)
