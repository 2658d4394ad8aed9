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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PIECE_BYTES = 15 << 20
KEPT = ("db", "groundtruth", "results", "logs", "done", "cache/flashinfer")
MARGIN_S = 5.0
"""Left at the end of a call, to write the archive."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile of one model."""

    model: str
    seconds: int
    """Seconds to measure."""
    quantization: str | None = None
    backend: str = "FLASH_ATTN"
    """Attention backend; empty text lets the engine choose."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Runs of the real engine on one model."""

    model: str
    loads: tuple[str, ...]
    """Workloads, NAME=SPEC, from light to heavy."""
    mode: str = "default"
    """As the engine runs by itself, `default`, which compiles and runs chosen batches too, or `eager`."""
    quantization: str | None = None
    backend: str = "FLASH_ATTN"

    @property
    def stem(self) -> str:
        """How its files begin."""
        return f"{named(self.model, self.quantization)}.{self.backend or 'auto'}.{self.mode}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run on one kind of device."""

    work: tuple[Profile | Truth, ...]
    """In order of worth: records and the engine's own runs, the rest can be had from them anywhere."""
    serving: tuple[str, ...]
    """Engine flags."""
    start_s: int
    """Seconds that an engine may take to start and a model to be traced."""
    serve_s: int
    """Seconds that the real engine may serve in one part."""


MEDIUM = "medium=poisson:rate=12,requests=96,prompt=128-1024,output=64-256,seed=2"
HEAVY = "heavy=poisson:rate=32,requests=256,prompt=128-1024,output=64-256,seed=3"
PLANS = {
    "cuda": Plan(
        work=(
            Truth("llama-3.1-8b", (MEDIUM, HEAVY), quantization="fp8"),
            Profile("llama-3.1-8b", 90, quantization="fp8"),
            Truth("qwen3-30b-a3b", (MEDIUM,)),
            Truth("llama-3.1-8b", (MEDIUM,), mode="eager"),
            Truth("qwen2.5-7b", (HEAVY,)),
            Profile("qwen3-30b-a3b", 60),
        ),
        serving=(
            *("--max-model-len", "8192", "--max-num-batched-tokens", "2048", "--max-num-seqs", "256"),
            *("--kv-cache-memory-bytes", str(32 << 30)),
        ),
        start_s=70,
        serve_s=75,
    ),
    "cpu": Plan(
        work=(
            Profile("smollm2-135m", 20, backend=""),
            Truth("smollm2-135m", ("heavy=poisson:rate=8,requests=8,prompt=8-64,output=4-8,seed=3",), backend=""),
            Truth("smollm2-135m", ("light=poisson:rate=2,requests=4,prompt=8-64,output=4-8,seed=1",), mode="eager", backend=""),
        ),
        serving=(
            *("--max-model-len", "256", "--max-num-batched-tokens", "128", "--max-num-seqs", "4"),
            *("--kv-cache-memory-bytes", str(64 << 20)),
        ),
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
    """Return what to run, in order of worth."""
    marker = "gpu" if device == "cuda" else "not gpu and not engine"
    sustained = (PYTHON, str(ROOT / "benchmarks" / "sustained.py"), "--device", device)
    # The eager engine's records tell CUDA graphs, but not what a CPU's compiler makes of the model.
    judged = [w for w in plan.work if isinstance(w, Truth) and (w.mode == "eager" or device == "cuda")]
    return (
        Part("timer-tests", (PYTHON, "-m", "pytest", "-q", "-m", marker, "tests/measure"), 120),
        Part("sustained", (*sustained, "--json", str(state / "results" / "sustained.json")), 60),
        *(measured(work, plan, state) for work in plan.work),
        *(judge(truth, load, state) for truth in judged for load in truth.loads),
    )


def measured(work: Profile | Truth, plan: Plan, state: Path) -> Part:
    """Return the part that profiles a model, or runs the real engine on its loads; one that compiles starts later."""
    quantised = ("--quantization", work.quantization) if work.quantization else ()
    common = (*quantised, *(("--attention-backend", work.backend) if work.backend else ()), *plan.serving)
    if isinstance(work, Profile):
        budget = ("--budget-seconds", str(work.seconds))
        command = (PYTHON, "-m", "dooly", "profile", work.model, "--db", str(state / "db"), *budget, *common)
        name = f"profile.{named(work.model, work.quantization)}.{work.backend or 'auto'}"
        return Part(name, command, plan.start_s + work.seconds)
    given = [word for load in work.loads for word in ("--load", load)]
    script = str(ROOT / "benchmarks" / "ground_truth.py")
    kept = ("--out", str(state / "groundtruth"), "--mode", work.mode, *(() if work.mode == "eager" else ("--steps",)))
    start_s = plan.start_s * (1 if work.mode == "eager" else 2)
    return Part(f"ground-truth.{work.stem}", (PYTHON, script, work.model, *kept, *given, *common), start_s + plan.serve_s)


def named(model: str, quantization: str | None) -> str:
    """Return a model's name in names of files."""
    return model if quantization is None else f"{model}-{quantization}"


def judge(truth: Truth, load: str, state: Path) -> Part:
    """Return the part that simulates a load, and compares it with the real engine's runs; needs no device."""
    name, spec = load.split("=", 1)
    stem = f"{truth.stem}.{name}"
    real = ("--real", str(state / "groundtruth" / f"{stem}.json.xz"))
    result = ("--json", str(state / "results" / f"validate.{stem}.json"))
    command = (PYTHON, "-m", "dooly", "validate", truth.model, "--db", str(state / "db"), "--workload", spec, *real, *result)
    return Part(f"validate.{stem}", command, 120, needs="catboost")


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
    parser.add_argument("--only", default="", help="parts whose name starts so")
    parser.add_argument("--list", action="store_true", help="print the parts, and which are done")
    return parser.parse_args()


def main() -> int:
    """Run the parts that are not done, as long as the time lasts; return 1 if one failed or was stopped."""
    args = arguments()
    begin = time.monotonic()
    plan = PLANS[args.device]
    state = args.state.resolve()
    for name in ("logs", "done", "results", "groundtruth"):
        (state / name).mkdir(parents=True, exist_ok=True)
    wanted = [part for part in parts(plan, args.device, state) if part.name.startswith(args.only)]
    failed = 0
    with watched(state / "logs" / "machine.txt", on=not args.list):
        for part in wanted:
            failed += attempt(part, state, args, begin)
    return 1 if failed else 0


def attempt(part: Part, state: Path, args: argparse.Namespace, begin: float) -> bool:
    """Run a part if it is to be run now, and tell what became of it; return whether it failed."""
    limit_s = min(part.limit_s, args.part_seconds)
    outcome = before(part, state, limit_s, args.seconds - (time.monotonic() - begin) - MARGIN_S)
    row: dict[str, object] = {"part": part.name, "limit_s": limit_s}
    code: int | None = 0
    if outcome is None and not args.list:
        started = time.monotonic()
        code = run(part, state, limit_s)
        row |= {"exit": code, "wall_s": round(time.monotonic() - started, 1)}
        if args.out:
            archive(state, args.out)
    else:
        row["left"] = outcome or "to do"
    print(json.dumps(row), flush=True)
    return code != 0


@contextmanager
def watched(file: Path, *, on: bool) -> Iterator[None]:
    """Watch host and GPU within the scope, beside all that runs."""
    if not on:
        yield
        return
    watcher = subprocess.Popen((PYTHON, str(ROOT / "benchmarks" / "watch_machine.py"), str(file)))
    try:
        yield
    finally:
        watcher.kill()
        watcher.wait()


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
