"""How many of the tokens that a policy keeps kvpress's own press of that name keeps too: the least share over layers and prompts.

Needs kvpress 0.5.5 with a Transformers below 5.3. The model is a small Llama of random weights with sharp attention.

    python benchmarks/kv_press.py [--prompts 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kvpress
import torch
import transformers

from dooly.kv import AdaKV, CriticalAdaKV, CriticalKV, SnapKV, as_press

NUM_TOKENS, WINDOW, BUDGETS = 200, 16, (0.25, 0.5)
PRESSES = {
    "snapkv": (SnapKV(WINDOW), lambda snap: snap),
    "adakv": (AdaKV(WINDOW), kvpress.AdaKVPress),
    "criticalkv": (CriticalKV(WINDOW), kvpress.CriticalKVPress),
    "critical-adakv": (CriticalAdaKV(WINDOW), kvpress.CriticalAdaKVPress),
}


def sharp_llama() -> Any:  # noqa: ANN401 - a LlamaForCausalLM
    """Return a Llama of three layers whose heads look at few tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, num_hidden_layers=3, **sizes)).eval()
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 20
        layer.self_attn.k_proj.weight.data *= 20
    return model


def kept_by(model: Any, press: Any, prompt: torch.Tensor) -> list[torch.Tensor]:  # noqa: ANN401 - as kvpress has them
    """Return whether each layer's heads keep each token: a tensor of shape (num_kv_heads, num_tokens) a layer."""
    whole = model(prompt, use_cache=True).past_key_values
    with press(model):
        cache = model(prompt, use_cache=True).past_key_values
    found = []
    for at, layer in enumerate(model.model.layers):
        before, after = whole.layers[at].keys[0], cache.layers[at].keys[0]
        kept = ((before[:, :, None] - after[:, None]).abs().amax(-1) < 1e-6).any(-1)  # noqa: PLR2004 - rounding
        if (masked := getattr(layer.self_attn, "masked_key_indices", None)) is not None:
            kept[masked[1], masked[2]] = False
        layer.self_attn.masked_key_indices = None
        found.append(kept)
    return found


@torch.no_grad()
def main() -> None:
    """Compare and print; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # small tensors wait longer for threads than they compute
    model, rows = sharp_llama(), []
    for name, (policy, make) in PRESSES.items():
        for budget in BUDGETS:
            shares = []
            for seed in range(args.prompts):
                prompt = torch.randint(1, 64, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(seed))
                theirs = make(kvpress.SnapKVPress(1 - budget, window_size=WINDOW))
                pairs = zip(kept_by(model, as_press(policy, budget), prompt), kept_by(model, theirs, prompt), strict=True)
                shares += [float((own & other).sum() / own.sum()) for own, other in pairs]
            rows.append({"policy": name, "budget": budget, "least": min(shares), "mean": sum(shares) / len(shares)})
            print(f"{name:15} at {budget:.0%}: {min(shares):.1%} or more kept by both, {rows[-1]['mean']:.1%} in the mean")
    versions = {package: version(package) for package in ("kvpress", "transformers", "torch")}
    if args.json:
        document = versions | {"prompts": args.prompts, "num_tokens": NUM_TOKENS, "window": WINDOW, "shares": rows}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
