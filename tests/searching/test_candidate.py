"""Candidates and the command that serves one."""

from __future__ import annotations

from dooly import Interconnect, ServingConfig, find_model
from dooly.searching import combine

MODEL = find_model("llama-3.1-8b")


def test_every_combination_is_a_candidate_in_the_order_given() -> None:
    """Models come first, then hardware, then each setting; what is not varied is shared."""
    found = combine(
        [MODEL, find_model("phi-4")], ["h200"], ServingConfig(max_model_len=64), {"max_num_seqs": (1, 2), "dtype": ("float16",)}
    )
    shown = [(c.model.name, c.serving.max_num_seqs, c.serving.dtype, c.serving.max_model_len) for c in found]
    assert shown == [(name, seqs, "float16", 64) for name in ("llama-3.1-8b", "phi-4") for seqs in (1, 2)]


def test_the_command_names_what_differs_from_the_defaults() -> None:
    """Settings that the engine has other defaults for always stand there, others where they differ; switches have no value."""
    choices = {"async_scheduling": (False,), "enable_expert_parallel": (True,), "gpu_memory_utilization": (0.8,)}
    (candidate,) = combine([MODEL], ["h200"], ServingConfig(tensor_parallel_size=2, pipeline_parallel_size=2), choices)
    assert candidate.num_gpus == 4
    assert candidate.command == (
        "vllm serve llama-3.1-8b --dtype bfloat16 --max-model-len 2048 --max-num-batched-tokens 2048 --max-num-seqs 64 "
        "--gpu-memory-utilization 0.8 --tensor-parallel-size 2 --pipeline-parallel-size 2 --enable-expert-parallel "
        "--no-async-scheduling"
    )


def test_a_digest_tells_candidates_apart() -> None:
    """Model, device, settings and link all count."""
    digests = {
        candidate.digest()
        for link in (None, Interconnect(1e9, 1e3))
        for candidate in combine([MODEL, find_model("phi-4")], ["h200", "h100"], ServingConfig(), {"max_num_seqs": (1, 2)}, link)
    }
    assert len(digests) == 16
