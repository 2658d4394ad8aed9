"""Policies as presses: by what they take of kvpress's base class, and by kvpress itself where it runs with this Transformers."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from dooly.errors import InvalidInputError, UnsupportedModelError  # noqa: E402 - after the skips
from dooly.kv import POLICIES, AdaKV, CriticalAdaKV, CriticalKV, Policy, SnapKV, apply, as_press  # noqa: E402
from dooly.kv._press import _press_class, _window_queries  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


class HookedPress:
    """What a policy takes of `kvpress.BasePress`: a scope in which each attention hands over what a prompt left in the cache.

    As there for Gemma3, layers with a sliding window do not.
    """

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:  # noqa: ANN401 - a LlamaForCausalLM
        """Compress what the model computes in the scope."""
        self.post_init_from_model(model)  # type: ignore[attr-defined]
        modules = [layer.self_attn for layer in model.model.layers if not getattr(layer.self_attn, "is_sliding", False)]
        hooks = [module.register_forward_hook(self._compress, with_kwargs=True) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _compress(self, module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:  # noqa: ANN401 - a hook
        held = kwargs["past_key_values"].layers[module.layer_idx]
        given = (kwargs["hidden_states"], held.keys, held.values, output[1], kwargs)
        held.keys, held.values = self.compress(module, *given)  # type: ignore[attr-defined]


def real_kvpress() -> Any:  # noqa: ANN401 - a module
    """Return kvpress; skip where it is not installed with a Transformers that it takes."""
    found = pytest.importorskip("kvpress", reason="kvpress 0.5.5 wants transformers < 5.3", exc_type=ImportError)
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 3):
        pytest.skip("kvpress 0.5.5 asks for a cache_position that transformers 5.3 and later do not give")
    return found


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Presses of the class above."""
    monkeypatch.setitem(sys.modules, "kvpress", SimpleNamespace(BasePress=HookedPress))  # type: ignore[arg-type]
    _press_class.cache_clear()
    yield
    _press_class.cache_clear()


DROPPING = [name for name, policy in POLICIES.items() if isinstance(policy, Policy)]


def check_kept(name: str, model: Any, layers: tuple[int, ...] = tuple(range(LAYERS))) -> None:  # noqa: ANN401
    """Hold a press to what `apply` keeps in layers, for prompts one after another."""
    press = as_press(name, 0.3)
    for seed in (0, 1):
        with torch.no_grad():
            found = left(model, press, prompt(seed))
            with apply(model, name, 0.3) as applied:
                cache = model(prompt(seed), use_cache=True).past_key_values
                model(prompt(seed)[:, :1], past_key_values=cache)  # it chooses when tokens come after
        for at, layer in enumerate(layers):
            assert torch.equal(found[layer], applied.kept[0, at])
        assert all(found[layer].all() for layer in set(range(LAYERS)) - {*layers})


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("name", DROPPING)
def test_a_press_keeps_what_apply_keeps(name: str, model: Any) -> None:  # noqa: ANN401
    """Every policy that drops tokens leaves in the cache, or masks beside it, what `dooly.kv.apply` keeps and drops."""
    check_kept(name, model)


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("name", ["adakv", "laprox"])
def test_a_press_leaves_sliding_windows(name: str) -> None:
    """Where some layers have a sliding window, the first among them, the others share their budget, prompt after prompt."""
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=HEADS,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=TOKENS + 8,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    )
    check_kept(name, transformers.Gemma3ForCausalLM(config).eval(), (1, 2))


@pytest.mark.usefixtures("hooked")
def test_a_press_is_told_what_is_dropped(model: Any) -> None:  # noqa: ANN401
    """`compression_ratio` is 1 less the budget, both ways; where all is kept nothing changes."""
    press = as_press("snapkv", 0.3)
    assert press.compression_ratio == pytest.approx(0.7)
    press.compression_ratio = 0.5
    assert press.budget == 0.5
    with pytest.raises(InvalidInputError, match="does not lie above 0"):
        press.compression_ratio = 1.5
    press.compression_ratio = 0
    assert all(bool(kept.all()) for kept in left(model, press, prompt()))


def test_attention_without_queries_of_its_own_is_refused() -> None:
    """A module that projects queries, keys and values as one cannot be scored."""
    with pytest.raises(UnsupportedModelError, match="has no q_proj"):
        _window_queries(torch.nn.Identity(), torch.ones(1, 4, 8), 2, (torch.ones(1), torch.ones(1)))


@pytest.mark.parametrize("name", DROPPING)
def test_kvpress_keeps_what_apply_keeps(name: str, model: Any) -> None:  # noqa: ANN401
    """So it is in kvpress itself, and the model generates with it."""
    real_kvpress()
    check_kept(name, model)
    with torch.no_grad():
        with apply(model, name, 0.3):
            cache = model(prompt(), use_cache=True).past_key_values
            expected = model(prompt()[:, :1], past_key_values=cache).logits
        with as_press(name, 0.3)(model):
            cache = model(prompt(), use_cache=True).past_key_values
            position = torch.tensor([TOKENS])
            logits = model(prompt()[:, :1], past_key_values=cache, position_ids=position[None], cache_position=position).logits
        for layer in model.model.layers:
            layer.self_attn.masked_key_indices = None
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


MAKE: dict[str, tuple[Policy, Callable[[Any, Any], Any]]] = {
    "snapkv": (SnapKV(WINDOW), lambda _kvpress, snap: snap),
    "criticalkv": (CriticalKV(WINDOW), lambda kvpress, snap: kvpress.CriticalKVPress(snap)),
    "adakv": (AdaKV(WINDOW), lambda kvpress, snap: kvpress.AdaKVPress(snap)),
    "critical-adakv": (CriticalAdaKV(WINDOW), lambda kvpress, snap: kvpress.CriticalAdaKVPress(snap)),
}
ALIKE = {"snapkv": 1.0, "adakv": 1.0, "criticalkv": 0.95, "critical-adakv": 0.95}
"""Least share of kept tokens that both keep: ours count shares beside the window, kvpress's with it."""


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("budget", [0.25, 0.5])
def test_kvpress_keeps_much_the_same(name: str, budget: float, model: Any) -> None:  # noqa: ANN401
    """SnapKV and Ada-KV keep the very tokens that kvpress keeps; CriticalKV keeps as many, and nearly all of them the same."""
    kvpress, (policy, make), shares = real_kvpress(), MAKE[name], []
    with torch.no_grad():
        for seed in range(5):
            theirs = make(kvpress, kvpress.SnapKVPress(1 - budget, window_size=WINDOW))
            ours, theirs = (left(model, press, prompt(seed)) for press in (as_press(policy, budget), theirs))
            for own, other in zip(ours, theirs, strict=True):
                assert int(own.sum()) == int(other.sum())
                shares.append(float((own & other).sum() / own.sum()))
    assert min(shares) >= ALIKE[name]


def test_what_drops_nothing_is_no_press() -> None:
    """CritiPrefill is refused."""
    with pytest.raises(InvalidInputError, match="critiprefill drops nothing"):
        as_press("critiprefill", 0.2)
