"""Measure, validate and check one GPU, in parts, each of which ends within a given time; run it again and it continues.

    python benchmarks/gpu_run.py --state DIR --seconds 500 --out OUT

DIR holds all that is found: the latency store `db`, the real engine's runs `groundtruth`, `results`, logs and what is done. After
each part, OUT holds it as one archive in pieces, so that nothing is lost with the machine:
`cat $(ls -d OUT/state-* | tail -n 1)/* | tar xJ -C DIR` brings it back. Parts run in order of worth; one that fails is named and
left for the next call, and the rest goes on.
`--device cpu` rehearses every part with a tiny sweep on the CPU engine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PIECE_BYTES = 15 << 20
KEPT = ("db", "groundtruth", "results", "logs", "done", "cache/flashinfer")
MARGIN_S = 5.0
"""Left at the end of a call, to write the archive."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run on one kind of device."""

    model: str
    """The model to profile, and to validate by runs of the whole engine."""
    others: tuple[str, ...]
    """Models to profile too, and to run whole as they run by default."""
    backends: tuple[str, ...]
    """Attention backends; the first serves the real engine's runs, empty text lets the engine choose."""
    serving: tuple[str, ...]
    """Engine flags."""
    loads: tuple[str, ...]
    """Workloads of the engine as it runs by default, NAME=SPEC, from light to heavy."""
    eager_loads: tuple[str, ...]
    """Workloads of the eager engine."""
    other_loads: tuple[str, ...]
    """Workloads of the other models, by default."""
    profile_s: int
    """Seconds to measure in one part."""
    start_s: int
    """Seconds that an engine may take to start and a model to be traced."""
    serve_s: int
    """Seconds that the real engine may serve in one part."""


LIGHT = "light=poisson:rate=4,requests=24,prompt=128-1024,output=64-256,seed=1"
MEDIUM = "medium=poisson:rate=12,requests=96,prompt=128-1024,output=64-256,seed=2"
LONG = "long=poisson:rate=3,requests=24,prompt=2048-7000,output=64-128,seed=4"
HEAVY = "heavy=poisson:rate=32,requests=256,prompt=128-1024,output=64-256,seed=3"
PLANS = {
    "cuda": Plan(
        model="llama-3.1-8b",
        others=("qwen2.5-7b",),
        backends=("FLASH_ATTN", "TRITON_ATTN"),
        serving=(
            *("--max-model-len", "8192", "--max-num-batched-tokens", "2048", "--max-num-seqs", "256"),
            *("--kv-cache-memory-bytes", str(32 << 30)),
        ),
        loads=(MEDIUM, HEAVY),
        eager_loads=(MEDIUM,),
        other_loads=(LONG, HEAVY),
        profile_s=130,
        start_s=70,
        serve_s=75,
    ),
    "cpu": Plan(
        model="smollm2-135m",
        others=(),
        backends=("",),
        serving=(
            *("--max-model-len", "256", "--max-num-batched-tokens", "128", "--max-num-seqs", "4"),
            *("--kv-cache-memory-bytes", str(64 << 20)),
        ),
        loads=("heavy=poisson:rate=8,requests=8,prompt=8-64,output=4-8,seed=3",),
        eager_loads=("light=poisson:rate=2,requests=4,prompt=8-64,output=4-8,seed=1",),
        other_loads=(),
        profile_s=20,
        start_s=120,
        serve_s=60,
    ),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One command, run to its end once."""

    name: str
    """Names its log and its mark."""
    command: tuple[str, ...]
    """What to run in the repository."""
    limit_s: int
    """Seconds after which it is stopped."""
    needs: str | None = None
    """A package without which it is left for another machine."""


def parts(plan: Plan, device: str, state: Path) -> tuple[Part, ...]:
    """Return what to run, in order of worth: records and the engine's own runs first, the rest can be had from them anywhere."""
    kernels = (PYTHON, str(ROOT / "benchmarks" / "kernel_sanity.py"), plan.model)
    kernels_file = ("--out", str(state / "results" / "kernels.json"))
    marker = "gpu" if device == "cuda" else "not gpu and not engine"
    backend, *other_backends = plan.backends
    # The eager engine's records tell CUDA graphs, but not what a CPU's compiler makes of the model.
    judged = {"eager": plan.eager_loads} | ({"default": plan.loads} if device == "cuda" else {})
    return (
        Part("timer-tests", (PYTHON, "-m", "pytest", "-q", "-m", marker, "tests/measure"), 120),
        Part("kernels", (*kernels, *kernels_file, "--device", device), 60),
        profile(plan, plan.model, backend, state, plan.profile_s),
        ground_truth(plan, plan.model, backend, "default", plan.loads, state),
        *(ground_truth(plan, other, backend, "default", plan.other_loads, state) for other in plan.others),
        ground_truth(plan, plan.model, backend, "eager", plan.eager_loads, state),
        *(profile(plan, plan.model, other, state, plan.profile_s // 3) for other in other_backends),
        *(profile(plan, other, backend, state, plan.profile_s // 2) for other in plan.others),
        profile(plan, plan.model, backend, state, plan.profile_s, "-more"),
        *(judge(plan.model, backend, mode, load, state) for mode, loads in judged.items() for load in loads),
        Part("kernels-predicted", (*kernels, *kernels_file, "--db", str(state / "db"), *flags(backend)), 60, needs="catboost"),
    )


def ground_truth(plan: Plan, model: str, backend: str, mode: str, loads: tuple[str, ...], state: Path) -> Part:  # noqa: PLR0913, PLR0917 - a part's own
    """Return the part that runs the real engine on loads; one that compiles starts later, and runs batch by batch too."""
    given = [word for load in loads for word in ("--load", load)]
    script = str(ROOT / "benchmarks" / "ground_truth.py")
    kept = ("--out", str(state / "groundtruth"), "--mode", mode, *(() if mode == "eager" else ("--steps",)))
    start_s = plan.start_s * (1 if mode == "eager" else 2)
    command = (PYTHON, script, model, *kept, *given, *flags(backend), *plan.serving)
    return Part(f"ground-truth.{model}.{backend or 'auto'}.{mode}", command, start_s + plan.serve_s)


def profile(plan: Plan, model: str, backend: str, state: Path, seconds: int, suffix: str = "") -> Part:  # noqa: PLR0913, PLR0917 - a part's own
    """Return the part that profiles a model for so many seconds."""
    budget = ("--budget-seconds", str(seconds))
    command = (PYTHON, "-m", "dooly", "profile", model, "--db", str(state / "db"), *budget, *flags(backend), *plan.serving)
    return Part(f"profile{suffix}.{model}.{backend or 'auto'}", command, plan.start_s + seconds)


def judge(model: str, backend: str, mode: str, load: str, state: Path) -> Part:
    """Return the part that simulates a load, and compares it with the real engine's runs; needs no device."""
    name, spec = load.split("=", 1)
    stem = f"{model}.{backend or 'auto'}.{mode}.{name}"
    real = ("--real", str(state / "groundtruth" / f"{stem}.json.xz"))
    result = ("--json", str(state / "results" / f"validate.{stem}.json"))
    command = (PYTHON, "-m", "dooly", "validate", model, "--db", str(state / "db"), "--workload", spec, *real, *result)
    return Part(f"validate.{stem}", command, 120, needs="catboost")


def flags(backend: str) -> tuple[str, ...]:
    """Return the flags that choose an attention backend."""
    return ("--attention-backend", backend) if backend else ()


def run(part: Part, state: Path, limit_s: float) -> int | None:
    """Run a part, its output to its log, and return its exit code; None where it was stopped. Mark it if it ended well."""
    cache = state / "cache"
    caches = {"FLASHINFER_WORKSPACE_BASE": str(cache / "flashinfer"), "TRITON_CACHE_DIR": str(cache / "triton")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (state / "logs" / f"{part.name}.log").open("ab") as log:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=os.environ | caches | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    if code == 0:
        (state / "done" / part.name).touch()
    return code


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started, gently first: a profile writes each point as it is measured."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(MARGIN_S / 2)
    # What a part started may outlive it, and hold the device.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def archive(state: Path, out: Path) -> None:
    """Write all that was found to `out`, as one archive in pieces, in a folder that appears whole; older ones go after that."""
    whole, aside = state / "state.tar.xz", out / "part"
    with tarfile.open(whole, "w:xz", preset=1) as tar:
        for name in KEPT:
            if (state / name).exists():
                tar.add(state / name, name)
    content = whole.read_bytes()
    whole.unlink()
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for number, start in enumerate(range(0, len(content), PIECE_BYTES)):
        (aside / f"state.tar.xz.{number:02d}").write_bytes(content[start : start + PIECE_BYTES])
    older = sorted(out.glob("state-*"))
    last = int(older[-1].name.removeprefix("state-")) if older else 0
    aside.rename(out / f"state-{last + 1:06d}")
    for folder in older:
        shutil.rmtree(folder)


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="what was found so far, and what will be")
    parser.add_argument("--out", type=Path, help="folder for the archive of the state after each part")
    parser.add_argument("--seconds", type=float, default=500, help="end within so long")
    parser.add_argument("--part-seconds", type=float, default=600, help="stop each part after so long at most")
    parser.add_argument("--device", choices=tuple(PLANS), default="cuda")
    parser.add_argument("--model", help="in place of the plan's; no others are profiled")
    parser.add_argument("--only", default="", help="parts whose name starts so")
    parser.add_argument("--list", action="store_true", help="print the parts, and which are done")
    return parser.parse_args()


def main() -> int:
    """Run the parts that are not done, as long as the time lasts; return 1 if one failed or was stopped."""
    args = arguments()
    begin = time.monotonic()
    plan = PLANS[args.device]
    if args.model:
        plan = replace(plan, model=args.model, others=())
    state = args.state.resolve()
    for name in ("logs", "done", "results", "groundtruth"):
        (state / name).mkdir(parents=True, exist_ok=True)
    failed = 0
    for part in parts(plan, args.device, state):
        if not part.name.startswith(args.only):
            continue
        left_s = args.seconds - (time.monotonic() - begin) - MARGIN_S
        outcome = before(part, state, min(part.limit_s, args.part_seconds), left_s)
        row: dict[str, object] = {"part": part.name, "limit_s": part.limit_s}
        if outcome is None and not args.list:
            started = time.monotonic()
            code = run(part, state, min(part.limit_s, args.part_seconds))
            failed += code != 0
            row |= {"exit": code, "wall_s": round(time.monotonic() - started, 1)}
            if args.out:
                archive(state, args.out)
        else:
            row["left"] = outcome or "to do"
        print(json.dumps(row), flush=True)
    return 1 if failed else 0


def before(part: Part, state: Path, limit_s: float, left_s: float) -> str | None:
    """Return why a part is not run now, or None."""
    if (state / "done" / part.name).exists():
        return "done"
    if part.needs and importlib.util.find_spec(part.needs) is None:
        return f"needs {part.needs}: run this command again where it is installed"
    return (
        None if left_s >= limit_s else f"takes up to {limit_s:.0f} s, {max(0.0, left_s):.0f} s are left: run this command again"
    )


if __name__ == "__main__":
    sys.exit(main())
