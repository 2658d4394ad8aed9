"""Write the signatures of what `import dooly` offers, which a test holds the library to: `python scripts/public_api.py`.

Beside the names of `dooly` itself are those of its rooms that a user of these meets: what they take and give.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dooly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BESIDE = (
    "imports.ImportResult",
    "imports.import_measurements",
    "kv_policy.KVPolicy",
    "latency.LatencyBackend",
    "predict.BatchArrays",
    "predict.Hardware",
    "predict.Interconnect",
    "predict.ModuleLatency",
    "predict.StepLatencies",
    "predict.StepLatency",
    "predict.listed_hardware",
    "simulation.SchedulerConfig",
    "simulation.Workload",
    "speculation.SpeculativeConfig",
    "tracing.TracedModel",
)
PINNED = Path(__file__).resolve().parent.parent / "tests" / "public_api.txt"


def public_api() -> Iterator[str]:
    """Yield a line for each public name, and one for each public method or property of a class."""
    for name in (*sorted(set(dooly.__all__) - {"__version__"}), *BESIDE):
        value = attrgetter(name)(dooly)
        if not inspect.isclass(value):
            yield f"{name}{_signature(value)}"
            continue
        # A class that only a loader makes promises its methods, not how it is made.
        yield f"class {name}{_signature(value) if is_dataclass(value) else ''}"
        own = [vars(base) for base in reversed(value.__mro__) if base.__module__.startswith(("dooly.", "dbstore."))]
        for member, found in sorted({name: found for members in own for name, found in members.items()}.items()):
            if not member.startswith("_"):
                yield from (f"{name}.{line}" for line in _member(member, found, value))


def _member(name: str, found: Any, owner: type) -> Iterator[str]:  # noqa: ANN401 - whatever a class holds
    """Yield the line of a class's method or property; fields stand in the signature."""
    if isinstance(found, property) or type(found).__name__ == "cached_property":
        yield name
    elif callable(getattr(owner, name)) and (inspect.isfunction(found) or isinstance(found, classmethod | staticmethod)):
        yield f"{name}{_signature(getattr(owner, name))}"


def _signature(value: Callable[..., Any]) -> str:
    """Return a signature in one form whatever the process: annotations as written, defaults that are no literals as `...`."""
    text = str(inspect.signature(value)).replace("'", "").replace(", _work: dict[int | None, AttentionWork] = <factory>", "")
    return re.sub(r"<(?:function [^>]*>|factory)[^,)]*|\(KVCacheGroup\([^)]*\),\)", "...", text)


if __name__ == "__main__":
    PINNED.write_text("".join(f"{line}\n" for line in public_api()), encoding="utf-8")
    print(PINNED)
