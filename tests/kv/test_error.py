"""Errors of attention's output, on a small Llama with unlike heads."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from dooly.engines import find_model  # noqa: E402 - after the skips
from dooly.errors import InvalidInputError, UnsupportedModelError  # noqa: E402
from dooly.kv import (  # noqa: E402
    POLICIES,
    AttentionShape,
    CapturedLayer,
    CritiPrefill,
    SnapKV,
    capture_attention,
    output_errors,
    select,
    structured_llama,
    structured_text,
)

SHAPE = AttentionShape(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=32, rope_theta=1e4)


@pytest.fixture(scope="module")
def layers() -> tuple[CapturedLayer, ...]:
    """Attention inputs of a prompt of 200 tokens and 20 more."""
    return capture_attention(structured_llama(SHAPE, 2, 220, seed=1), structured_text(220, seed=1))


def outputs(layer: CapturedLayer, kept: torch.Tensor) -> list[torch.Tensor]:
    """Return each head's part of the output of each later token, over its kept tokens alone, by loops."""
    found = []
    for head, queries in enumerate(layer.queries):
        own = head // 2
        rows = []
        for place in range(200, 220):
            seen = [t for t in range(place + 1) if t >= 200 or kept[own, t]]
            weights = (layer.keys[own, seen] @ queries[place] * layer.scaling).softmax(0)
            rows.append(weights @ layer.values[own, seen] @ layer.output_projection[head])
        found.append(torch.stack(rows))
    return found


def test_errors_are_those_of_attention_without_the_dropped_tokens(layers: tuple[CapturedLayer, ...]) -> None:
    """The layer's, the worst token's and each head's error are those worked out token by token."""
    policy = SnapKV(16)
    (error,) = output_errors(layers, 200, {"snap": policy}, [0.2], seed=3)
    kept = select(policy, [layer.prompt(200, 16) for layer in layers], 0.2)
    assert (error.policy, error.budget, error.num_tokens, error.seed) == ("snap", 0.2, 200, 3)
    for layer, found, own in zip(layers, error.layers, kept, strict=True):
        whole, rest = outputs(layer, torch.ones_like(own)), outputs(layer, own)
        total, lost = sum(whole), sum(whole) - sum(rest)
        assert found.output == pytest.approx(float(lost.norm() / total.norm()), rel=1e-3)
        assert found.worst == pytest.approx(float((lost.norm(dim=1) / total.norm(dim=1)).max()), rel=1e-3)
        assert found.heads == pytest.approx(
            [float((w - r).norm() / w.norm()) for w, r in zip(whole, rest, strict=True)], rel=1e-2
        )


def test_the_window_has_an_error_of_its_own(layers: tuple[CapturedLayer, ...]) -> None:
    """It is that of later tokens where the text is taken to end with the window, and the tokens before it were kept so."""
    policy = SnapKV(16)
    kept = select(policy, [layer.prompt(200, 16) for layer in layers], 0.2)
    (error,) = output_errors(layers, 200, {"snap": policy}, [0.2])
    for layer, found, own in zip(layers, error.layers, kept, strict=True):
        attention = layer.prompt(200, 16).window_attention()
        rest = attention * own[:, None, None]
        rest = rest / rest.sum(-1, keepdim=True)
        whole, lost = (
            torch.einsum("hqd,hdo->qo", (a @ layer.values[:, None, :200]).flatten(0, 1), layer.output_projection)
            for a in (attention, attention - rest)
        )
        assert found.window == pytest.approx(float(lost.norm() / whole.norm()), rel=1e-3)


def test_a_larger_budget_has_a_smaller_error_and_a_full_one_none(layers: tuple[CapturedLayer, ...]) -> None:
    """Every policy's error falls from a fifth to four fifths, and is 0 at budget 1."""
    policies = {name: policy for name, policy in POLICIES.items() if not isinstance(policy, CritiPrefill)}
    policies["criti"] = CritiPrefill(segment_size=32, block_size=8, num_dense_tokens=32)
    found = {(e.policy, e.budget): e.output for e in output_errors(layers, 200, policies, [0.2, 0.8, 1])}
    for name in policies:
        assert found[name, 0.2] > found[name, 0.8] >= found[name, 1] == 0


def test_critiprefill_leaves_its_first_tokens_layers_and_last_segment(layers: tuple[CapturedLayer, ...]) -> None:
    """A prompt no longer than the dense tokens has no error, and neither has the first layer of a longer one."""
    (short,) = output_errors(layers, 200, {"criti": CritiPrefill()}, [0.2])
    assert short.output == 0
    (sparse,) = output_errors(layers, 200, {"criti": CritiPrefill(32, 8, 32)}, [0.2])
    assert sparse.layers[0].output == 0 < sparse.layers[1].output


def test_heads_are_unlike(layers: tuple[CapturedLayer, ...]) -> None:
    """Some head spreads its attention over ten times as many tokens as another, and the first token's value is the smallest."""
    attention = torch.cat([layer.prompt(200, 32).window_attention().flatten(0, 1) for layer in layers])
    spread = (-(attention.clamp(min=1e-12).log() * attention).sum(-1).mean(-1)).exp()
    assert spread.max() > 10 * spread.min()
    norms = layers[0].values.norm(dim=-1)
    assert (norms[:, 0] < norms[:, 1:].quantile(0.1, dim=1)).all()


def test_weights_and_texts_come_from_their_seeds() -> None:
    """The same seed gives the same, another one not, and the process's own random numbers stay as they were."""
    state = torch.random.get_rng_state()
    one, two, other = (structured_llama(SHAPE, 1, 64, seed).layers[0].self_attn.q_proj.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(structured_text(300, 0), structured_text(300, 0))
    assert not torch.equal(structured_text(300, 0), structured_text(300, 1))
    assert torch.equal(state, torch.random.get_rng_state())


def test_bursts_repeat_recent_tokens() -> None:
    """With repeats, many more of the last 256 tokens' words come again than without."""

    def share(repeats: float) -> float:
        text = structured_text(4000, 0, repeats)[0].tolist()
        return sum(text[i] in text[i - 256 : i] for i in range(256, 4000)) / 3744

    assert share(0.6) > share(0) + 0.15


def test_shapes_are_read_from_configurations() -> None:
    """Sizes are the configuration's; a model with latent keys is refused."""
    llama = AttentionShape.of(find_model("llama-3.1-8b"))
    assert llama == AttentionShape(4096, 32, 8, 128, 500000.0)
    assert [llama.on_rank(ranks).head_sizes for ranks in (1, 4, 16)] == [(32, 8, 128, 4096), (8, 2, 128, 4096), (2, 1, 128, 4096)]
    for ranks in (0, 3, 64):
        with pytest.raises(InvalidInputError, match=f"--tensor-parallel-size: {ranks} ranks cannot share 32 heads"):
            llama.on_rank(ranks)
    with pytest.raises(UnsupportedModelError, match="deepseek-v2-lite: its attention has no keys and values for each head"):
        AttentionShape.of(find_model("deepseek-v2-lite"))


def test_what_has_no_error_is_refused(layers: tuple[CapturedLayer, ...]) -> None:
    """A prompt that nothing follows, several texts, and no layers are errors of one line."""
    with pytest.raises(InvalidInputError, match="a prompt of 220 of 220 tokens leaves none to follow"):
        next(output_errors(layers, 220, {"snap": SnapKV()}, [0.5]))
    with pytest.raises(InvalidInputError, match="are not one text"):
        capture_attention(structured_llama(SHAPE, 1, 8, 0), torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(InvalidInputError, match="structured_llama: num_layers: 0 is not at least 1"):
        structured_llama(SHAPE, 0, 8, 0)
