"""HiSim, whose code SGLang's simulator shares, unmodified: SGLang's own scheduler on Dooly's latencies, and on HiSim's.

    python benchmarks/hisim.py CHECKOUT --python PYTHON [--json FILE]

CHECKOUT has HiSim's `src`; PYTHON is the path of an interpreter that has its requirements, an SGLang that it knows,
aiconfigurator 0.8 and Dooly's requirements. Prints one JSON object: Llama 3.1 8B on an H100, the same requests by SGLang
on Dooly's latencies, with prompts beside decodes and without, and on aiconfigurator's tables, which HiSim takes by itself; by
Dooly's simulator; and for the steps of the run on these tables, what they take there over what they take by Dooly.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import dooly
from dooly.adapters.sglang import InferTimePredictor

ROOT = Path(__file__).resolve().parents[1]
_WORKLOAD = "poisson:rate=16,requests=500,prompt=128-1024,output=16-128,seed=0"
_NAME = "meta-llama/Meta-Llama-3.1-8B"  # a folder that aiconfigurator takes for the model of this name
_LIMITS = {"max_num_seqs": 256, "max_model_len": 8192}
_PLATFORM = {
    "accelerator": {"name": "H100_SXM"},
    **{f"{place}_{way}_bandwidth_gb": 16 for place in ("disk", "memory") for way in ("read", "write")},
    "num_device_per_node": 8,
}
_SCHEDULER = {"backend_version": "0.5.6.post2", "data_type": "FP16", "kv_cache_data_type": "FP16"}
_CONFIG = {
    "platform": _PLATFORM,
    "predictor": {"name": "aiconfigurator", "device_name": "h100_sxm"},
    "scheduler": _SCHEDULER | {"tp_size": 1, "ep_size": 1, "dp_size": 1},
}
_KEYS = {"ttft": "ttft", "tpot": "tpot", "e2e": "e2e_latency"}
_DRIVER = """
import json, os, sys
import hisim.hook
from hisim.simulation.sglang import sgl_kernel_hook
hisim.hook.install_module_hooks([sgl_kernel_hook.M_SGLangKernelLoadUtilHook])
from hisim.dataset.base_dataset import GenericRequest, SimpleDataset
from hisim.simulation.manager import ConfigManager
from hisim.simulation.sglang.sglang_bench import SGLangBenchmarkRunner
from hisim.simulation.types import BenchmarkConfig
import dooly
from dooly.adapters.sglang import InferTimePredictor
asked = json.loads(os.environ["ASKED"])
def predictor(cls, info, accelerator, config):
    model = dooly.find_model("llama-3.1-8b")
    serving = dooly.default_serving(model, "h100", **asked["limits"])
    return InferTimePredictor(dooly.load_latency_model(model=model, serving=serving, hardware="h100"))
if asked["by"] == "dooly":  # at import, so in the scheduler's process as well
    ConfigManager.get_inference_time_predictor = classmethod(predictor)
if __name__ == "__main__":
    from sglang.srt.server_args import ServerArgs
    runner = SGLangBenchmarkRunner(ServerArgs(
        load_format="dummy", device="cpu", skip_tokenizer_init=True, log_level="warning", **asked["server"]
    ))
    requests = [  # no two share a prefix
        GenericRequest(token_ids=[index + 1] * prompt, output_length=output, custom_params={"created_time": at})
        for index, (prompt, output, at) in enumerate(asked["requests"])
    ]
    found = runner.benchmark(BenchmarkConfig(), dataset=SimpleDataset(reqs=requests))
    steps = [(step["requests"], step["forward_latency"]) for step in runner.get_iteration_stats()]
    runner.shutdown()
    print(json.dumps({"means": found, "steps": steps}))
"""


def _served(asked: argparse.Namespace, by: str, server: dict[str, Any], requests: list[Any]) -> dict[str, Any]:
    """Run HiSim on the latencies of `dooly` or its own, and return its metrics and steps."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / _NAME).parent.mkdir()
        (place / _NAME).symlink_to(Path(dooly.find_model("llama-3.1-8b").folder).resolve())
        (place / "config.json").write_text(json.dumps(_CONFIG))
        (place / "driver.py").write_text(_DRIVER)
        told = {"by": by, "limits": _LIMITS, "server": server | {"model_path": _NAME}, "requests": requests}
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(asked.checkout.resolve() / "src"), str(ROOT)]),
            "ASKED": json.dumps(told),
            "HISIM_CONFIG_PATH": str(place / "config.json"),
            "SGLANG_USE_CPU_ENGINE": "1",
            "FLASHINFER_DISABLE_VERSION_CHECK": "1",
        }
        command = [asked.python, "driver.py"]
        done = subprocess.run(command, cwd=place, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = next(json.loads(line) for line in done.stdout.splitlines()[::-1] if line.startswith('{"means"'))
    return found


def _means(found: dict[str, Any]) -> dict[str, float]:
    means = found["means"]
    return {
        "requests": means["completed"],
        **{f"{name}_s": round(means[f"mean_{key}_ms"] / 1e3, 6) for name, key in _KEYS.items()},
        "duration_s": round(means["duration"], 3),
        "steps": len(found["steps"]),
        "wall_s": round(means["time_cost"], 1),
    }


def _own(summary: dict[str, Any]) -> dict[str, float]:
    means = {f"{name}_s": round(summary[f"{name}_s"]["mean"], 6) for name in _KEYS}
    wholes = {name: round(summary[name], 3) for name in ("duration_s", "power_limit_s")}
    return {"requests": summary["requests"], **means, **wholes}


def _ratios(steps: list[Any], latency: dooly.LatencyModel) -> dict[str, Any]:
    """Return what steps of prompts and of decodes took over what they take by Dooly, on the device and with the host."""
    found: dict[str, Any] = {}
    predictor = InferTimePredictor(latency)
    for kind, decodes in (("prompts", False), ("decodes", True)):
        chosen = [(pairs, took_s) for pairs, took_s in steps if (max(new for new, _ in pairs) == 1) == decodes]
        theirs = np.array([took_s for _, took_s in chosen])
        asked: list[Any] = [
            SimpleNamespace(reqs=[SimpleNamespace(input_length=new, past_kv_length=past) for new, past in pairs])
            for pairs, _ in chosen
        ]
        wall_s = np.array([predictor.predict_infer_time(batch) for batch in asked])
        batches = [dooly.Batch(tuple(new for new, _ in pairs), tuple(past for _, past in pairs)) for pairs, _ in chosen]
        device_s = latency.steps(batches).seconds
        found[kind] = {"steps": len(chosen), "device": _spread(theirs, device_s), "with_host": _spread(theirs, wall_s)}
    return found


def _spread(theirs: Any, ours: Any) -> dict[str, float]:  # noqa: ANN401 - arrays of seconds
    """Return the ratio of the sums, and percentiles of those of single steps."""
    single = {f"p{at}": round(float(np.percentile(theirs / ours, at)), 4) for at in (10, 50, 90)}
    return {"all": round(float(theirs.sum() / ours.sum()), 4)} | single


def hisim(asked: argparse.Namespace) -> dict[str, Any]:
    """Serve the same requests by SGLang's scheduler on Dooly's latencies and HiSim's own, and by Dooly."""
    model = dooly.find_model("llama-3.1-8b")
    serving = dooly.default_serving(model, "h100", **_LIMITS)
    latency = dooly.load_latency_model(model=model, serving=serving, hardware="h100")
    config = dooly.scheduler_config(serving, latency)
    workload = dooly.parse_workload(_WORKLOAD)
    requests = [[row.num_prompt_tokens, row.num_output_tokens, row.arrival_ns / 1e9] for row in workload.requests]
    server = {
        "context_length": config.max_model_len,
        "max_total_tokens": config.num_kv_blocks * config.block_size,
        "max_running_requests": config.max_num_seqs,
        "max_prefill_tokens": config.max_num_batched_tokens,
        "chunked_prefill_size": config.max_num_batched_tokens,
    }
    runs = {
        "dooly_latencies": _served(asked, "dooly", server, requests),
        "dooly_latencies_mixed": _served(asked, "dooly", server | {"enable_mixed_chunk": True}, requests),
        "own_latencies": _served(asked, "own", server, requests),
    }
    waits = replace(config, async_scheduling=False)
    return {
        "peer": "alibaba/tair-kvcache, hisim",
        "workload": _WORKLOAD,
        **{name: _means(found) for name, found in runs.items()},
        "dooly": _own(dooly.simulate(workload, latency, config).summary()),
        "dooly_scheduling_after_each_step": _own(dooly.simulate(workload, latency, waits).summary()),
        "own_over_dooly": _ratios(runs["own_latencies"]["steps"], latency),
    }


def main() -> None:
    """Run the comparison and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", required=True, type=os.path.abspath)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    text = json.dumps(hisim(asked), indent=2)
    print(text)
    if asked.json is not None:
        asked.json.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
