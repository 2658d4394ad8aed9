"""Small files of other tools, each with rows that are read and rows that are not: a bundle, tables of a system, profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.tracing import TracedModel

DENSE = ("act_fn", "down_proj", "embedding", "final_layernorm", "gate_up_proj", "layernorm", "o_proj", "qkv_proj", "rotary_emb")
SIZES = (256, 512, 1024, 2048)
FA3 = "vllm_flash_attn_fa3"


META = """profiler_version: 1.0.0
vllm_version: 0.19.0
cuda_version: '13.0'
gpu: NVIDIA RTX PRO 6000 Blackwell Server Edition
engine_effective:
  block_size: 16
"""


@pytest.fixture(scope="module")
def table() -> TracedModel:
    """The operations of Llama 3.1 8B on one rank."""
    return operation_table(find_model("llama-3.1-8b"), ServingConfig())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle in which each token takes a microsecond in each layer, and attention one a thousand positions."""
    folder = tmp_path / "llama" / "tp1"
    folder.mkdir(parents=True)
    (folder.parent / "meta.yaml").write_text(META)
    dense = [f"{layer},{tokens},{2 + tokens}" for layer in (*DENSE, "quantum_proj") for tokens in (1, 64, 2048)]
    (folder / "dense.csv").write_text("\n".join(["layer,tokens,time_us", *dense]))
    heads = [f"{layer},{count},{10 + count}" for layer in ("lm_head", "sampler") for count in (1, 64)]
    (folder / "per_sequence.csv").write_text("\n".join(["layer,sequences,time_us", *heads]))
    rows = [
        f"{chunk},{context},{count},{length},{5 + (count * length + chunk * (context + chunk / 2)) / 1000}"
        for chunk, context in ((0, 0), (16, 0), (128, 512), (1024, 0))
        for count, length in ((0, 0), (1, 16), (8, 512), (64, 4096))
        if chunk + count
    ]
    (folder / "attention.csv").write_text("\n".join(["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", *rows]))
    skew = [f"{n},1,0,0,512,4096,{3 * (9 + n)}" for n in (2, 8, 32)]
    (folder / "skew.csv").write_text("\n".join(["n,nb,pc,kp,kvs,kv_big,t_skew_us", *skew]))
    return folder


def write_table(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write a table of aiconfigurator."""
    origin = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200"}
    pq.write_table(pa.Table.from_pylist([origin | row for row in rows]), folder / f"{name}_perf.parquet")


def _attention(kernel: str, window: int, **sizes: int) -> dict[str, Any]:
    heads = {"num_heads": 8, "num_key_value_heads": 2, "head_dim": 128} | sizes
    work = heads["batch_size"] * heads["isl"] * (heads["isl"] + heads["step"]) * heads["num_heads"]
    facts = {"window_size": window, "kv_cache_dtype": "bfloat16", "kernel_source": kernel}
    return heads | facts | {"latency": 0.005 + work / 1e9}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables of a made-up device: each kind of row that is read, and beside it one that is not."""
    products = [
        {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": scale * (0.004 + m * n * k / 1e12)}
        for dtype, scale in (("bfloat16", 1), ("fp8", 0.5), ("fp8_block", 15))
        for m in (1, 8, 64, 512)
        for n in SIZES
        for k in SIZES
    ]
    write_table(tmp_path, "gemm", products)
    shapes = [(heads, kv) for heads in (4, 8, 16, 32) for kv in (1, 2, 4)]
    for name, isl, steps in (("context_attention", (1, 64, 512, 2048), (0,)), ("generation_attention", (1,), (15, 255, 4095))):
        rows = [
            _attention(FA3, 0, batch_size=b, isl=i, step=s, num_heads=h, num_key_value_heads=kv)
            for b in (1, 4, 16)
            for i in isl
            for s in steps
            for h, kv in shapes
        ]
        windowed = [_attention(FA3, 128, batch_size=b, isl=isl[-1], step=0, num_heads=h) for b in (1, 4) for h in (8, 16)]
        write_table(tmp_path, name, [*rows, *windowed, _attention("other", 0, batch_size=1, isl=2, step=0)])
    mixtures = [
        {"num_tokens": t, "hidden_size": h, "inter_size": i, "topk": 2, "num_experts": 8, "moe_tp_size": 2, "moe_ep_size": 1}
        | {"moe_dtype": dtype, "kernel_source": "some", "distribution": spread, "latency": 0.01 + t * h * i / 1e11}
        for t in (1, 16, 256)
        for h in (512, 1024, 2048)
        for i in (512, 1024)
        for dtype, spread in (("bfloat16", "balanced"), ("bfloat16", "power_law_1.2"), ("fp8", "balanced"))
    ]
    write_table(tmp_path, "moe", mixtures)
    for name, isl, steps in (("mla_context_module", (64, 512), (0,)), ("mla_generation_module", (1,), (15, 255))):
        modules = [
            {"num_heads": h, "batch_size": b, "isl": i, "step": s, "kv_cache_dtype": "bfloat16", "gemm_type": gemm, "tp_size": 1}
            | {"latency": 40 + b * i * (i + s) * h / 1e6}
            for h in (4, 8, 16)
            for b in (1, 4)
            for i in isl
            for s in steps
            for gemm in ("bfloat16", "fp8_block")
        ]
        write_table(tmp_path, name, modules)
    messages = [128, 1024, 8192]
    reduce = [
        {"num_gpus": p, "message_size": m, "backend": b, "op_name": "all_reduce", "latency": 0.004 * p + m / 1e6}
        for p in (2, 4)
        for m in reversed(messages)
        for b in ("vllm_graph", "vllm_eager")
    ]
    write_table(tmp_path, "custom_allreduce", reduce)
    gather = [
        {"num_gpus": 2, "message_size": m, "nccl_dtype": "half", "op_name": o, "latency": 0.01}
        for m in messages
        for o in ("all_gather", "reduce_scatter", "alltoall")
    ]
    write_table(tmp_path, "nccl", gather)
    write_table(tmp_path, "computescale", [{"m": m, "k": 4096, "latency": m * 4096 * 2 / 2e12 * 1e3} for m in range(1, 30)])
    return tmp_path


@pytest.fixture
def write_rows() -> Callable[[Path, str, list[dict[str, Any]]], None]:
    """Return a function that writes a table of a system from rows."""
    return write_table


_VIDUR = "n_embd,n_q_head,n_kv_head,block_size,num_tensor_parallel_workers,batch_size,prefill_chunk_size,kv_cache_size"
_MLP_TIMES = {
    "emb": 1,
    "input_layernorm": 2,
    "attn_pre_proj": 30,
    "attn_rope": 3,
    "attn_post_proj": 20,
    "post_attention_layernorm": 2,
    "mlp_up_proj": 100,
    "mlp_act": 4,
    "mlp_down_proj": 50,
    "add": 1,
}


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """Profiles of Llama 3 8B, whose operations are those of 3.1: each time is some microseconds and a nanosecond a token."""
    folder = tmp_path / "compute" / "a100" / "meta-llama" / "Meta-Llama-3-8B"
    folder.mkdir(parents=True)
    header = [f"time_stats.{name}.{kind}" for name in _MLP_TIMES for kind in ("min", "median")]
    facts = "n_head,n_kv_head,n_embd,n_expanded_embd,vocab_size,use_gated_mlp,num_tokens,num_tensor_parallel_workers"
    widths = "32,8,4096,14336,128256,True"
    rows = [
        ",".join([*(f"0,{(us + tokens / 1000) / 1000}" for us in _MLP_TIMES.values()), f"{widths},{tokens},{ranks}"])
        for ranks in (1, 2)
        for tokens in (1, 64, 64, 512, 2048)
    ]
    (folder / "mlp.csv").write_text("\n".join([",".join([*header, facts]), *rows]))
    times = [f"time_stats.{name}.median" for name in ("attn_decode", "attn_prefill", "attn_kv_cache_save")]
    decodes = [
        f"{(10 + count * length / 1000) / 1000},,0.002,4096,32,8,16,1,{count},0,{length},FLASHINFER"
        for count in (1, 4, 16, 64)
        for length in (32, 512, 4000)
    ]
    prefills = [
        f",{(20 + chunk * (length + chunk / 2) / 10000) / 1000},0.002,4096,32,8,16,1,1,{chunk},{length},FLASHINFER"
        for chunk in (64, 512, 2048)
        for length in (0, 1024)
    ]
    (folder / "attention.csv").write_text("\n".join([",".join([*times, _VIDUR, "attention_backend"]), *decodes, *prefills]))
    return folder
