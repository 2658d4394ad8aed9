"""Policies at work in a Transformers model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from dooly.errors import InvalidInputError, UnsupportedModelError  # noqa: E402 - after the skips
from dooly.kv import POLICIES, CritiPrefill, LayerInputs, Policy, SnapKV, apply, select  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> Iterator[transformers.LlamaForCausalLM]:
    """A small Llama with sharp attention."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=request.param,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


def prompt(num_tokens: int = 80, batch: int = 2) -> torch.Tensor:
    """Return token numbers."""
    return torch.randint(1, 64, (batch, num_tokens), generator=torch.Generator().manual_seed(1))


def generate(model: transformers.LlamaForCausalLM, tokens: torch.Tensor, **settings: int | str | bool) -> torch.Tensor:
    """Return the logits of six greedy tokens."""
    settings |= {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    done = model.generate(tokens, attention_mask=tokens >= 0, **settings)
    return torch.stack(done.logits)


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_full_budget_changes_no_bit(model: transformers.LlamaForCausalLM, name: str) -> None:
    """At budget 1 prompts and generated tokens have the very logits that the model has without a policy."""
    plain, whole = generate(model, prompt()), model(prompt()).logits
    with apply(model, name, 1):
        assert torch.equal(generate(model, prompt()), plain)
        assert torch.equal(model(prompt()).logits, whole)
    assert torch.equal(generate(model, prompt()), plain)


@pytest.mark.parametrize("name", [n for n, p in POLICIES.items() if isinstance(p, Policy)])
def test_what_nothing_attends_to_is_dropped_first(name: str) -> None:
    """With room for all tokens but one, the one that has no attention goes, and the logits stay."""
    tokens, model = prompt(), turned_away(token=63)
    tokens[tokens == 63], tokens[:, 20] = 1, 63
    policy = POLICIES[name]
    # A pooled score is its neighbours' too, and a defensive one is no less than the mean.
    alone = {field: value for field, value in {"kernel_size": 1, "defensive": False}.items() if hasattr(policy, field)}
    policy = replace(policy, **alone)
    plain = generate(model, tokens)
    with apply(model, policy, 79.5 / 80) as applied:
        torch.testing.assert_close(generate(model, tokens), plain, atol=1e-5, rtol=1e-5)
    assert {tuple(at) for at in (~applied.kept).nonzero()[:, [3]].tolist()} == {(20,)}
    assert int((~applied.kept).sum()) == 2 * 3 * 2


def turned_away(token: int) -> transformers.LlamaForCausalLM:
    """Return a Llama in which nothing attends to a token: its hidden dimension 0, as no other has, turns its keys away."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=64, num_hidden_layers=3, initializer_range=0.4, attention_bias=True, eos_token_id=None, pad_token_id=0, **sizes
    )
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e12}  # the last pair of a head does not turn
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        embeddings = model.model.embed_tokens.weight
        embeddings[:, 0], embeddings[token, 0] = 0, 50
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = attention.o_proj.bias[0] = 0
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                projection.weight[:, 0] = 0
            query, key = attention.q_proj, attention.k_proj
            query.weight[7::8], query.bias[7::8] = 0, 10
            key.weight[7::8] = 0
            key.weight[7::8, 0] = -100
    return model


@pytest.mark.parametrize("name", [n for n, p in POLICIES.items() if isinstance(p, Policy)])
def test_later_tokens_attend_to_the_kept_alone(model: transformers.LlamaForCausalLM, name: str) -> None:
    """Tokens after a prompt have the logits of a model whose dropped keys were never there, worked out by hand."""
    with apply(model, name, 0.5) as applied:
        generated = generate(model, prompt())
    assert applied.kept.shape == (2, 3, 2, 80)
    assert int(applied.kept.sum()) == 2 * 3 * 2 * 40
    plain = generate(model, prompt())
    assert torch.equal(generated[0], plain[0])
    assert not torch.allclose(generated[1], plain[1])
    expected = second_token(model, prompt(), generated[0].argmax(-1), applied.kept)
    torch.testing.assert_close(generated[1], expected, atol=1e-3, rtol=0)


def second_token(
    model: transformers.LlamaForCausalLM, tokens: torch.Tensor, first: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Return the logits after `first`, with each head's dropped keys and values taken out of the cache one request at a time."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    rows = []
    for place in range(len(tokens)):
        cache = model(tokens[place : place + 1], use_cache=True).past_key_values
        hidden = model.model.embed_tokens(first[place : place + 1, None])
        cos, sin = model.model.rotary_emb(hidden, torch.tensor([[tokens.shape[1]]]))
        for at, layer in enumerate(model.model.layers):
            query, key, value = project(layer, hidden)
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            heads = []
            for head in range(4):
                own, left = head // 2, kept[place, at, head // 2]
                keys = torch.cat([cache.layers[at].keys[0, own][left], key[0, own]])
                values = torch.cat([cache.layers[at].values[0, own][left], value[0, own]])
                heads.append((keys @ query[0, head, 0] * 8**-0.5).softmax(0) @ values)
            hidden = hidden + layer.self_attn.o_proj(torch.cat(heads))[None, None]
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        rows.append(model.lm_head(model.model.norm(hidden))[0, 0])
    return torch.stack(rows)


def project(layer: torch.nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return a layer's queries, keys and values before rotary embeddings: (1, heads, tokens, 8)."""
    x, own = layer.input_layernorm(hidden), layer.self_attn
    return tuple(p(x).view(1, x.shape[1], -1, 8).transpose(1, 2) for p in (own.q_proj, own.k_proj, own.v_proj))


def test_what_is_kept_is_what_select_keeps(model: transformers.LlamaForCausalLM) -> None:
    """The first layer's kept tokens are those of `select` on its queries, keys and values."""
    policy = SnapKV(8)
    with apply(model, policy, 0.5) as applied:
        model.generate(prompt(batch=1), max_new_tokens=2, do_sample=False)
    layer, tokens = model.model.layers[0], prompt(batch=1)
    x = model.model.embed_tokens(tokens)
    query, key, value = project(layer, x)
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    query, key = apply_rotary_pos_emb(query, key, *model.model.rotary_emb(x, torch.arange(80)[None]))
    inputs = LayerInputs(query[0, :, -8:], key[0], value[0], layer.self_attn.o_proj.weight.T.unflatten(0, (4, 8)), 8**-0.5)
    assert torch.equal(applied.kept[0, 0], select(policy, [inputs], 0.5)[0])


def test_what_follows_goes_on_in_several_tokens(model: transformers.LlamaForCausalLM) -> None:
    """Once a token was generated, several tokens in one forward see what one after the other see."""
    tokens, more = prompt(), prompt(6)

    def start() -> transformers.DynamicCache:
        cache = model(tokens, use_cache=True).past_key_values
        model(more[:, :1], past_key_values=cache)
        return cache

    with apply(model, "adakv", 0.5):
        together = model(more[:, 1:], past_key_values=start()).logits
        cache = start()
        single = torch.cat([model(more[:, i : i + 1], past_key_values=cache).logits for i in range(1, 6)], 1)
    torch.testing.assert_close(together, single, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["snapkv", "laprox"])
@pytest.mark.parametrize("size", [70, 50, 16])
def test_a_prompt_in_chunks_is_one_prompt(model: transformers.LlamaForCausalLM, name: str, size: int) -> None:
    """A prompt whose attention is computed in chunks keeps what it keeps in one forward, the window across chunks included."""
    tokens, chunks = prompt(120), {"prefill_chunk_size": size}
    with apply(model, name, 0.5) as applied:
        whole, kept = generate(model, tokens), applied.kept
        chunked = generate(model, tokens, **chunks)
    assert torch.equal(applied.kept, kept)
    torch.testing.assert_close(chunked, whole, atol=1e-3, rtol=1e-3)


def test_each_cache_has_its_own_prompt(model: transformers.LlamaForCausalLM) -> None:
    """Prompts of two caches in turn are decoded as each would be alone."""
    with apply(model, "laprox", 0.5) as applied:
        alone = [decode(model, model(tokens, use_cache=True).past_key_values) for tokens in (prompt(80), prompt(120))]
        caches = [model(tokens, use_cache=True).past_key_values for tokens in (prompt(80), prompt(120))]
        assert applied.kept is None
        for cache, expected, length in zip(caches, alone, (80, 120), strict=True):
            assert torch.equal(decode(model, cache), expected)
            assert applied.kept.shape[3] == length


def decode(model: transformers.LlamaForCausalLM, cache: transformers.DynamicCache) -> torch.Tensor:
    """Return the logits after one more token."""
    return model(prompt(1), past_key_values=cache).logits


def test_critiprefill_is_exact_where_all_blocks_are_chosen(model: transformers.LlamaForCausalLM) -> None:
    """A budget just below 1 that has room for all blocks gives the whole attention; a small one does not."""
    policy = CritiPrefill(segment_size=16, block_size=4, num_dense_tokens=16)
    plain = model(prompt()).logits
    with apply(model, policy, 0.95):
        torch.testing.assert_close(model(prompt()).logits, plain)
    with apply(model, policy, 0.1):
        sparse = model(prompt()).logits
    torch.testing.assert_close(sparse[:, :16], plain[:, :16])
    assert not torch.allclose(sparse[:, 48:64], plain[:, 48:64])
    with apply(model, "critiprefill", 0.1):
        assert torch.equal(model(prompt()).logits, plain)


def test_what_cannot_be_applied_is_refused(model: transformers.LlamaForCausalLM) -> None:
    """A policy in a policy, padding, budgets without room for the window, and other attentions are errors of one line."""
    with (
        apply(model, "snapkv", 0.5),
        pytest.raises(UnsupportedModelError, match="applied to it already"),
        apply(model, "adakv", 0.5),
    ):
        pass
    padded = torch.ones_like(prompt())
    padded[0, :3] = 0
    with apply(model, "snapkv", 0.5), pytest.raises(InvalidInputError, match="padded or packed"):
        model(prompt(), attention_mask=padded)
    with (
        apply(model, "snapkv", 0.2),
        pytest.raises(InvalidInputError, match=r"0.2 of 80 tokens are 16, fewer than the window of 32"),
    ):
        generate(model, prompt())
    with apply(model, "snapkv", 0.5), pytest.raises(InvalidInputError, match=r"0.5 of 1 tokens are 0, fewer"):
        generate(model, prompt(1))
    with pytest.raises(UnsupportedModelError, match="Linear: "), apply(_Other(model.config), "snapkv", 0.5):
        pass
    plain = pytest.raises(UnsupportedModelError, match="Linear: is no Transformers model; use a Llama-like PreTrainedModel")
    with plain, apply(torch.nn.Linear(3, 3), "snapkv", 0.2):
        pass


def test_caches_that_do_not_tell_are_refused(model: transformers.LlamaForCausalLM) -> None:
    """No cache, one of a fixed size, one filled elsewhere, one cut into the prompt, and chunks of a sparse prefill."""
    before = model(prompt(), use_cache=True).past_key_values
    with apply(model, "snapkv", 0.5):
        with pytest.raises(UnsupportedModelError, match="SnapKV keeps tokens of a cache; call with use_cache=True"):
            generate(model, prompt(), use_cache=False)
        with pytest.raises(UnsupportedModelError, match=r"a cache gives 8\d keys for 80 tokens; use .* DynamicCache"):
            generate(model, prompt(), cache_implementation="static")
        with pytest.raises(InvalidInputError, match=r"holds 80 tokens where 0 of its prompt were computed in the scope"):
            decode(model, before)
        cache = model(prompt(), use_cache=True).past_key_values
        decode(model, cache)
        cache.crop(-5)
        with pytest.raises(InvalidInputError, match=r"holds 76 tokens where 80 of its prompt"):
            decode(model, cache)
    sparse = CritiPrefill(segment_size=16, block_size=4, num_dense_tokens=16)
    with apply(model, sparse, 0.5):
        with pytest.raises(InvalidInputError, match=r"in one forward, and 40 tokens follow 40; leave out prefill_chunk"):
            generate(model, prompt(), prefill_chunk_size=40)
        with pytest.raises(UnsupportedModelError, match="use one that holds what it was given"):
            generate(model, prompt(), cache_implementation="static")
    assert not any(layer.self_attn._forward_pre_hooks for layer in model.model.layers)


class _Other(torch.nn.Linear):
    """A model without attention."""

    def __init__(self, config: transformers.LlamaConfig) -> None:
        super().__init__(1, 1)
        self.config = config


_Other.__name__ = "Linear"
