"""Policies as presses of kvpress, where it is installed with a Transformers that it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
kvpress = pytest.importorskip("kvpress", reason="kvpress 0.5.5 wants transformers < 5.3", exc_type=ImportError)

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 3),
    reason="kvpress 0.5.5 asks for a cache_position that transformers 5.3 and later do not give",
)

from dooly.errors import InvalidInputError  # noqa: E402 - after the skips
from dooly.kv import POLICIES, AdaKV, CriticalAdaKV, CriticalKV, Policy, SnapKV, apply, as_press  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS, WINDOW, LAYERS, HEADS = 200, 16, 3, 2


@pytest.fixture(scope="module")
def model() -> Any:  # noqa: ANN401 - a LlamaForCausalLM
    """A small Llama with sharp attention."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=HEADS,
    )
    found = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in found.model.layers:
            layer.self_attn.q_proj.weight *= 20
            layer.self_attn.k_proj.weight *= 20
    return found


def prompt(seed: int = 0) -> torch.Tensor:
    """Return a prompt of one request."""
    return torch.randint(1, 64, (1, TOKENS), generator=torch.Generator().manual_seed(seed))


def left(model: Any, press: Any, tokens: torch.Tensor) -> list[torch.Tensor]:  # noqa: ANN401 - as kvpress has them
    """Return whether a press keeps each token, by layer: (num_kv_heads, num_tokens)."""
    whole = model(tokens, use_cache=True).past_key_values
    with press(model):
        cache = model(tokens, use_cache=True).past_key_values
    found = []
    for at, layer in enumerate(model.model.layers):
        masked = getattr(layer.self_attn, "masked_key_indices", None)
        if masked is not None:
            kept = torch.ones(HEADS, TOKENS, dtype=torch.bool)
            kept[masked[1], masked[2]] = False
        else:
            rows = (whole.layers[at].keys[0][:, :, None] - cache.layers[at].keys[0][:, None]).abs().amax(-1)
            kept = (rows < 1e-6).any(-1)
        found.append(kept)
        layer.self_attn.masked_key_indices = None
    return found


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if isinstance(policy, Policy)])
def test_a_press_keeps_what_apply_keeps(name: str, model: Any) -> None:  # noqa: ANN401
    """Every policy that drops tokens keeps the same as in `dooly.kv.apply`, and the model generates with it."""
    with torch.no_grad():
        found = left(model, as_press(name, 0.3), prompt())
        with apply(model, name, 0.3) as applied:
            cache = model(prompt(), use_cache=True).past_key_values
            expected = model(prompt()[:, :1], past_key_values=cache).logits
        for at in range(LAYERS):
            assert torch.equal(found[at], applied.kept[0, at])
        press = as_press(name, 0.3)
        assert press.compression_ratio == pytest.approx(0.7)
        with press(model):
            cache = model(prompt(), use_cache=True).past_key_values
            position = torch.tensor([TOKENS])
            logits = model(prompt()[:, :1], past_key_values=cache, position_ids=position[None], cache_position=position).logits
        for layer in model.model.layers:
            layer.self_attn.masked_key_indices = None
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


MAKE: dict[str, tuple[Policy, Callable[[float], Any]]] = {
    "snapkv": (SnapKV(WINDOW), lambda ratio: kvpress.SnapKVPress(ratio, window_size=WINDOW)),
    "criticalkv": (CriticalKV(WINDOW), lambda ratio: kvpress.CriticalKVPress(kvpress.SnapKVPress(ratio, window_size=WINDOW))),
    "adakv": (AdaKV(WINDOW), lambda ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio, window_size=WINDOW))),
    "critical-adakv": (
        CriticalAdaKV(WINDOW),
        lambda ratio: kvpress.CriticalAdaKVPress(kvpress.SnapKVPress(ratio, window_size=WINDOW)),
    ),
}
ALIKE = {"snapkv": 1.0, "adakv": 1.0, "criticalkv": 0.95, "critical-adakv": 0.95}
"""Least share of kept tokens that both keep: ours count shares beside the window, kvpress's with it."""


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("budget", [0.25, 0.5])
def test_kvpress_keeps_much_the_same(name: str, budget: float, model: Any) -> None:  # noqa: ANN401
    """SnapKV and Ada-KV keep the very tokens that kvpress keeps; CriticalKV keeps as many, and nearly all of them the same."""
    policy, make = MAKE[name]
    shares = []
    with torch.no_grad():
        for seed in range(5):
            ours, theirs = left(model, as_press(policy, budget), prompt(seed)), left(model, make(1 - budget), prompt(seed))
            for own, other in zip(ours, theirs, strict=True):
                assert int(own.sum()) == int(other.sum())
                shares.append(float((own & other).sum() / own.sum()))
    assert min(shares) >= ALIKE[name]


def test_what_drops_nothing_is_no_press() -> None:
    """CritiPrefill is refused."""
    with pytest.raises(InvalidInputError, match="critiprefill drops nothing"):
        as_press("critiprefill", 0.2)
