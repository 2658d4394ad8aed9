"""Trace every text-generation architecture of vLLM's registry, with the configuration that Transformers gives it by default.

Each is traced in a process of its own. Those that Transformers has no configuration class for are left out. What is refused is
listed with its reason: code that only a GPU runs, a default configuration that the model's own code does not accept, or a gap of
Dooly's.

Run `python benchmarks/architectures.py [ARCHITECTURE ...] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TIMEOUT_S = 300


def main() -> None:
    """Trace the architectures that the command line names, all without, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(trace_here(*options.architectures)))
        return
    known = configured_architectures()
    found = []
    for name in options.architectures or known:
        found.append(trace_apart(name, known[name]))
        row = found[-1]
        print(
            f"{name:36} " + (f"{row['num_rows']:3} rows, {', '.join(row['state'])}" if "state" in row else row["refused"]),
            flush=True,
        )
    traced = sum("state" in row for row in found)
    print(f"{traced} of {len(found)} traced")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def configured_architectures() -> dict[str, str]:
    """Return the Transformers model type of each text-generation architecture that vLLM runs and Transformers can configure."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm.model_executor.models.registry import ModelRegistry

    types: dict[str, str] = {}
    for model_type, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in (names,) if isinstance(names, str) else names:
            types.setdefault(name, model_type)
    return {name: types[name] for name in sorted(ModelRegistry.get_supported_archs()) if name in types}


def trace_apart(name: str, model_type: str) -> dict[str, Any]:
    """Trace one architecture in a process of its own."""
    command = [sys.executable, __file__, name, model_type, "--one"]
    begin = time.perf_counter()
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"architecture": name, "refused": f"not done after {TIMEOUT_S} s"}
    if run.returncode != 0:
        lines = [line for line in run.stderr.splitlines() if line.strip()] or [f"exit code {run.returncode}"]
        return {"architecture": name, "refused": f"crash: {lines[-1]}"}
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return {"architecture": name, "process_s": round(time.perf_counter() - begin, 1)} | row


def trace_here(name: str, model_type: str) -> dict[str, Any]:
    """Trace one architecture in this process."""
    from transformers import CONFIG_MAPPING

    from dooly.engines import ServingConfig, find_model
    from dooly.engines.vllm import trace_vllm_model
    from dooly.errors import DoolyError

    with tempfile.TemporaryDirectory() as folder:
        try:
            config = CONFIG_MAPPING[model_type](architectures=[name])
        except ValueError as error:
            return {"refused": f"Transformers has no default configuration: {str(error).splitlines()[0]}"}
        config.save_pretrained(folder)
        try:
            traced = trace_vllm_model(find_model(folder), ServingConfig())
        except DoolyError as error:
            return {"refused": str(error).replace(f"{Path(folder).name}: ", "")}
    return {
        "num_rows": len(traced.operations),
        "num_unique": len({op.signature for op in traced.operations}),
        "state": sorted({str(op.attributes["kind"]) for op in traced.operations if op.stateful}),
    }


if __name__ == "__main__":
    main()
