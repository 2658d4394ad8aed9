"""A Llama whose heads are unlike, from a seed: attention of real shape where no trained weights are at hand.

Random weights alone give attention that is nearly even, where every policy is as good as chance. What trained models are known to
have is put into the weights by hand: the first token is a sink whose value is small, many heads look at their neighbours, a few
look for earlier tokens like the present one, others at everything a little. The model then runs as Transformers runs it, and
later layers see what the earlier ones mixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.kv_policy import HeadSizes

if TYPE_CHECKING:
    import torch

    from dooly.engines import ModelSource

VOCAB_SIZE = 4096
"""Tokens there are; number 0 starts each text."""
_CONSTANT, _SINK = 0, 1
"""Hidden dimensions that all tokens share, and that only the first token has."""
_CONSTANT_SHARE = 0.3
"""Share of a token's squared norm that all tokens have in common."""
_LOCAL_WAVELENGTH = 256
"""Rotary dimensions that turn once in fewer tokens tell neighbours; the others carry contents."""
_KINDS = {"local": (0.45, 12, 7, 0), "sink": (0.25, 3, 10, 0), "retrieval": (0.1, 0, 7, 14), "diffuse": (0.2, 2, 4, 0)}
"""Kinds of heads: share of heads, and logits of the nearest token, of the sink, and of a token of the same content."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The sizes of a model that its attention depends on."""

    hidden_size: int
    """Size of a token's state."""
    num_heads: int
    """Query heads of a layer."""
    num_kv_heads: int
    """Key/value heads of a layer."""
    head_dim: int
    """Size of a head."""
    rope_theta: float
    """Base of the rotary embedding's wavelengths."""

    @classmethod
    def of(cls, model: ModelSource) -> AttentionShape:
        """Return the shape of a model's attention.

        Raises:
            UnsupportedModelError: Its configuration names no heads, or its keys and values are latent.
        """
        config = model.text_config
        if not all(config.get(key) for key in ("hidden_size", "num_attention_heads")) or config.get("kv_lora_rank"):
            raise UnsupportedModelError(
                f"{model.name}: its attention has no keys and values for each head; use a Llama-like model"
            )
        hidden_size, num_heads = config["hidden_size"], config["num_attention_heads"]
        theta = (config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta") or 10000.0
        num_kv_heads = config.get("num_key_value_heads") or num_heads
        return cls(hidden_size, num_heads, num_kv_heads, config.get("head_dim") or hidden_size // num_heads, float(theta))

    @property
    def head_sizes(self) -> HeadSizes:
        """What the cost of a selection depends on."""
        return HeadSizes(self.num_heads, self.num_kv_heads, self.head_dim, self.hidden_size)

    def on_rank(self, num_ranks: int) -> AttentionShape:
        """Return the shape on one of so many tensor-parallel ranks, as vLLM divides it.

        Raises:
            InvalidInputError: The heads cannot be divided.
        """
        fewer, more = sorted((self.num_kv_heads, max(1, num_ranks)))
        if num_ranks < 1 or self.num_heads % num_ranks or more % fewer:
            raise InvalidInputError(
                f"--tensor-parallel-size: {num_ranks} ranks cannot share {self.num_heads} heads, and {self.num_kv_heads} of keys "
                "and values; choose a divisor of both"
            )
        return replace(self, num_heads=self.num_heads // num_ranks, num_kv_heads=max(1, self.num_kv_heads // num_ranks))


def structured_llama(shape: AttentionShape, num_layers: int, max_tokens: int, seed: int) -> Any:  # noqa: ANN401 - a LlamaModel
    """Return a Transformers Llama with heads of several kinds, in float32 and inference mode.

    Args:
        shape: Sizes of its attention; its feed-forward layers are small.
        num_layers: Decoder layers.
        max_tokens: Longest text.
        seed: Which weights.

    Raises:
        InvalidInputError: There is no layer.
    """
    import torch
    from transformers import LlamaConfig, LlamaModel

    if num_layers < 1:
        raise InvalidInputError(f"structured_llama: num_layers: {num_layers} is not at least 1")
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden_size,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        pad_token_id=None,
    )
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: Any = LlamaModel(config)
        model.eval()
        model.set_attn_implementation("sdpa")
        model.embed_tokens.weight.copy_(_embeddings(shape.hidden_size, draw))
        for layer in model.layers:
            _fill(layer.self_attn, shape, draw)
    return model


def structured_text(num_tokens: int, seed: int, repeats: float = 0.6) -> torch.Tensor:
    """Return token numbers by Zipf's law, in bursts: (1, num_tokens).

    A share of the tokens repeats one of the last 256, as in the cache language model of Kuhn and De Mori (1990). So the last
    tokens of a prompt foretell what comes, which is what policies go by; without repeats they do not.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    tokens = torch.multinomial(1 / torch.arange(1.0, VOCAB_SIZE), num_tokens, replacement=True, generator=draw) + 1
    tokens[0] = 0
    repeated = torch.rand(num_tokens, generator=draw) < repeats
    back = torch.randint(1, 257, (num_tokens,), generator=draw)
    for place in range(1, num_tokens):
        if repeated[place] and back[place] < place:
            tokens[place] = tokens[place - back[place]]
    return tokens[None]


def _embeddings(hidden_size: int, draw: torch.Generator) -> torch.Tensor:
    """Return states of a mean square of about 1: what is common, what is a token's own, and the sink's."""
    import torch

    states = torch.randn(VOCAB_SIZE, hidden_size, generator=draw) * math.sqrt(1 - _CONSTANT_SHARE)
    states *= torch.randn(VOCAB_SIZE, 1, generator=draw).mul(0.3).exp()
    states[0] = 0
    states[:, _CONSTANT], states[:, _SINK] = math.sqrt(_CONSTANT_SHARE * hidden_size), 0
    states[0, _SINK] = math.sqrt((1 - _CONSTANT_SHARE) * hidden_size)
    return states


def _fill(attention: Any, shape: AttentionShape, draw: torch.Generator) -> None:  # noqa: ANN401 - a LlamaAttention
    """Give an attention module heads of all kinds."""
    import torch

    hidden, size, group = shape.hidden_size, shape.head_dim, shape.num_heads // shape.num_kv_heads
    key = torch.stack([_key_rows(shape, draw) for _ in range(shape.num_kv_heads)])
    query = torch.stack([_query_rows(key[head // group], shape, draw) for head in range(shape.num_heads)])
    attention.k_proj.weight.copy_(key.flatten(0, 1))
    attention.q_proj.weight.copy_(query.flatten(0, 1) * math.sqrt(size))  # the logits' own scaling takes it back
    spectrum = torch.arange(1.0, hidden + 1).rsqrt()  # a few contents make up most of a value, so that norms differ
    spectrum /= spectrum.norm()
    spectrum[_CONSTANT], spectrum[_SINK] = hidden**-0.5, 0
    attention.v_proj.weight.copy_(torch.randn(shape.num_kv_heads * size, hidden, generator=draw) * spectrum)
    outputs = torch.randn(hidden, shape.num_heads * size, generator=draw)
    attention.o_proj.weight.copy_(0.3 / math.sqrt(shape.num_heads * size) * outputs)


def _local_pairs(shape: AttentionShape) -> int:
    """Return how many rotary pairs, the first ones, turn once within the local wavelength."""
    half = shape.head_dim // 2
    turns = math.log(_LOCAL_WAVELENGTH / (2 * math.pi)) / math.log(shape.rope_theta)
    return max(1, min(half - 2, round(turns * half)))


def _key_rows(shape: AttentionShape, draw: torch.Generator) -> torch.Tensor:
    """Return (head_dim, hidden_size): what is common in the fast pairs, contents in the slow ones, the sink in the slowest."""
    import torch

    hidden, half, local = shape.hidden_size, shape.head_dim // 2, _local_pairs(shape)
    rows = torch.zeros(shape.head_dim, hidden)
    rows[:local, _CONSTANT] = 1 / math.sqrt(local * _CONSTANT_SHARE * hidden)
    content = [*range(local, half - 1), *range(half + local, 2 * half - 1)]
    scale = 1 / math.sqrt(len(content) * (1 - _CONSTANT_SHARE) * hidden)
    rows[content, 2:] = scale * torch.randn(len(content), hidden - 2, generator=draw)
    rows[half - 1, _SINK] = 1 / math.sqrt((1 - _CONSTANT_SHARE) * hidden)
    return rows


def _query_rows(key: torch.Tensor, shape: AttentionShape, draw: torch.Generator) -> torch.Tensor:
    """Return (head_dim, hidden_size): the key's own rows as strong as the head's kind has them, and noise on the contents."""
    import torch

    shares = torch.tensor([share for share, *_ in _KINDS.values()])
    kind = list(_KINDS.values())[int(torch.multinomial(shares, 1, generator=draw))]
    nearest, sink, same = (logit * float(torch.randn(1, generator=draw).mul(0.25).exp()) for logit in kind[1:])
    half, local = shape.head_dim // 2, _local_pairs(shape)
    rows = torch.zeros_like(key)
    rows[:local] = nearest * key[:local]
    content = [*range(local, half - 1), *range(half + local, 2 * half - 1)]
    noise = torch.randn(len(content), key.shape[1] - 2, generator=draw) / math.sqrt((1 - _CONSTANT_SHARE) * key.shape[1])
    rows[content, 2:] = same * key[content, 2:] + 1.5 * noise
    rows[half - 1, _CONSTANT] = sink / math.sqrt(_CONSTANT_SHARE * key.shape[1])
    return rows
