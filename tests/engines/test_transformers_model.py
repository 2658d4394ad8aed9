from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError, TraceError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("transformers", reason="transformers is not installed; it comes with the cpu extra")

from dooly.engines.transformers import trace_transformers_model
from dooly.tracing import trace

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES}


def write(folder: Path, config: dict[str, Any]) -> Path:
    """Write a configuration into a folder."""
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def build(model_type: str, **changes: Any) -> Any:  # noqa: ANN401 - a PreTrainedModel
    """Return a tiny Transformers model with one layer, in inference mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    names = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2}
    sizes = names if model_type == "gpt2" else SIZES | {"num_hidden_layers": 1}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes), **changes).eval()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [("llama", {}), ("gpt2", {}), ("mixtral", {"experts_implementation": "grouped_mm"})],
)
def test_a_models_logits_are_its_own(model_type: str, changes: dict[str, Any]) -> None:
    """Called by keywords as users do, the logits are bit for bit the model's, and batch and sequence are the request's."""
    import torch

    model = build(model_type, **changes)
    traced = trace(model, request_dims={"input_ids": ("batch", "seq")})
    ids = torch.randint(0, 97, (3, 7))
    with torch.no_grad():
        assert torch.equal(traced(input_ids=ids).logits, model(input_ids=ids).logits)
    embedding = traced.traced.operations[0]
    assert [[(d.origin, d.value) for d in t.shape] for t in embedding.inputs] == [
        [("config", 97), ("config", 32)],
        [("request", None), ("request", None)],
    ]
    names = {name for op in traced.traced.operations for dim in op.request_dims for name in re.findall("[a-z_]+", dim)}
    assert names == {"batch", "seq"}
    experts = [op.request_flops for op in traced.traced.operations if "experts" in op.module]
    flops = sum(int(form.partition("*")[0]) for form in experts if form != "0")
    assert flops == (2 * 2 * 3 * 32 * 48 if changes else 0)  # two experts a token, of three products each


def test_experts_that_loop_over_the_data_are_refused_with_the_setting() -> None:
    """Experts that run one by one cannot be captured; the error names the setting that can."""
    import torch

    model = build("mixtral", experts_implementation="eager")
    with pytest.raises(
        TraceError, match=r"^/\S+\.py:\d+: MixtralForCausalLM: .*; call model\.set_experts_implementation\('grouped_mm'\)"
    ):
        trace(model)(torch.zeros(3, 7, dtype=torch.int64))


def test_a_configuration_is_traced_at_full_size(tmp_path: Path) -> None:
    """Each kind of layer is traced once with its count; the head is the logits stage; attention runs causally, without a mask."""
    table = trace_transformers_model(find_model(str(write(tmp_path, LLAMA))), ServingConfig())
    rows = {op.module: op for op in table.operations}
    assert rows["model.layers.0.self_attn.q_proj"].count == 3
    assert (rows["lm_head"].count, rows["lm_head"].stage) == (1, "logits")
    assert (table.environment["engine"], rows["lm_head"].outputs[0].dtype) == ("torch", "bfloat16")
    assert "bool" not in {t.dtype for t in rows["model.layers.0.self_attn"].inputs}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no_such"}, "Transformers cannot build it: "),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config: mxfp4 weights are packed when they load"),
        ({"hidden_size": "big"}, r"build it: Field 'hidden_size' expected int, got str \(value: 'big'\); check its config.json$"),
        ({"hidden_size": 33}, r"build it: The hidden size \(33\) is not a multiple of the number of attention heads \(4\)"),
        ({"intermediate_size": -1}, "Trying to create tensor with negative dimension -1: .*; check its config.json$"),
        ({"num_key_value_heads": 0}, "ZeroDivisionError: .*; check its config.json$"),
        ({"hidden_act": "no_such"}, "KeyError: 'no_such'; check its config.json$"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}, "contains custom code"),
    ],
)
def test_what_cannot_be_built_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    """What Transformers does not know, refuses or cannot run, and quantised weights, are each one line, and no question."""
    with pytest.raises(UnsupportedModelError, match=message) as refused:
        trace_transformers_model(find_model(str(write(tmp_path, LLAMA | changes))), ServingConfig())
    assert "\n" not in str(refused.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (LLAMA | {"num_hidden_layers": -1}, "num_hidden_layers: -1"),
        (LLAMA | {"vocab_size": 0}, "vocab_size: 0"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 0}, "n_layer: 0"),
    ],
)
def test_a_model_without_layers_or_words_is_refused(tmp_path: Path, config: dict[str, Any], field: str) -> None:
    """A number of layers or words below 1 is refused by the name that it has in the file."""
    with pytest.raises(InvalidInputError) as refused:
        trace_transformers_model(find_model(str(write(tmp_path, config))), ServingConfig())
    assert str(refused.value) == f"{tmp_path / 'config.json'}: {field} is not at least 1; correct it"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_backend": "FLASH_ATTN"}, "--attention-backend: names a backend of vLLM"),
        ({"enforce_eager": False}, "--no-enforce-eager: asks an engine to compile, and --engine torch has none; leave it out"),
    ],
)
def test_an_engines_setting_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    """An attention backend means nothing here, nor does a compiled engine."""
    with pytest.raises(InvalidInputError, match=message):
        trace_transformers_model(find_model(str(write(tmp_path, LLAMA))), ServingConfig(**settings))


def test_values_may_be_of_another_size_than_keys() -> None:
    """What identifies attention is read of queries, keys and values: these may be wider or narrower than the keys."""
    import torch
    from torch import nn

    from dooly.engines.transformers._shown import _attend, shown_attributes

    owner = nn.Module()
    query, key, value = (torch.empty(1, heads, 5, size, device="meta") for heads, size in ((4, 24), (2, 24), (2, 16)))
    out, _ = _attend(owner, query, key, value, None, scaling=0.5)
    assert out.shape == (1, 5, 4, 16)
    attributes = shown_attributes(owner.get_submodule("paged_attention")) or {}
    assert {name: attributes[name] for name in ("num_heads", "num_kv_heads", "head_size", "head_size_v", "scale")} == {
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 24,
        "head_size_v": 16,
        "scale": 0.5,
    }


@pytest.mark.parametrize(("asked", "offline"), [(None, True), ("0", False)])
def test_the_network_is_the_callers_again(monkeypatch: pytest.MonkeyPatch, asked: str | None, *, offline: bool) -> None:
    """Nothing is fetched within the scope unless the caller says so; afterwards environment and hub library are as they were."""
    import os

    from huggingface_hub import constants

    from dooly.engines.transformers._library import quiet_transformers

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if asked is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", asked)
    with quiet_transformers():
        assert constants.HF_HUB_OFFLINE is offline
    assert constants.HF_HUB_OFFLINE is False
    assert os.environ.get("HF_HUB_OFFLINE") == asked
