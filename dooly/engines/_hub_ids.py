"""The makers' names of the models that Dooly lists: what an engine loads their weights by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.engines._config import listed_models

if TYPE_CHECKING:
    from dooly.engines._config import ModelSource

_HUB_IDS = {
    "command-r7b": "CohereLabs/c4ai-command-r7b-12-2024",
    "deepseek-r1-distill-qwen-32b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-v2-lite": "deepseek-ai/DeepSeek-V2-Lite",
    "gemma-2-9b": "google/gemma-2-9b",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "mistral-7b-v0.3": "mistralai/Mistral-7B-v0.3",
    "phi-4": "microsoft/phi-4",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "qwen2.5-32b": "Qwen/Qwen2.5-32B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
}
"""Hugging Face repositories by listed name."""


def hub_id(model: ModelSource) -> str | None:
    """Return the Hugging Face repository of a listed model; None for others, as a folder need not hold weights."""
    return _HUB_IDS.get(model.name) if model in listed_models() else None
