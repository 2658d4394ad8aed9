"""Predict Qwen3 32B on two ranks by the records of Llama 3.1 8B alone, and compare with its own records of the same device.

    python benchmarks/cross_model.py [--batches 200]

Linear layers go by a family fitted to Llama's ten pairs of widths, attention by Llama's regressor (as a ratio to the roofline),
and all that Llama has not by its bytes. Collectives over a stated link are the same on both sides, so errors also stand without
them. Batches are drawn at random: decodes of unequal contexts, four in ten beside a prompt.
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.predict import Interconnect
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._estimated import MovedBytes
from dooly.predict._families import LinearFamily
from dooly.predict._family import fit_family
from dooly.predict._family_features import linear_inputs
from dooly.predict._fit_hardware import assemble
from dooly.predict._kinds import AttentionShape, Collective, LinearLayer, kind_of
from dooly.predict._measured import MeasuredAttention

if TYPE_CHECKING:
    from dooly.predict._sources import OperationLatency
    from dooly.tracing import TracedOperation

DEVICE, KNOWN, UNKNOWN, RANKS = "rtxpro6000", "llama-3.1-8b", "qwen3-32b", 2
LINK = Interconnect(16e9, 20_000.0)


class OthersRecords(DeviceLatencies):
    """A device's latencies by the records of one model."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, LINK)
        tables = [operation_table(find_model(KNOWN), ServingConfig(tensor_parallel_size=ranks)) for ranks in (1, 2)]
        known = [op for table in tables for op in table.operations if op.signature in self.measured]
        rows = [
            (size, kind.n, kind.k, ns)
            for op in {op.signature: op for op in known}.values()
            if isinstance(kind := kind_of(op), LinearLayer)
            for size, ns in zip(self.measured[op.signature].sizes, self.measured[op.signature].measured_ns, strict=True)
        ]
        m, n, k, latency_ns = np.array(rows).T
        pairs = np.unique(np.stack([n, k]), axis=1, return_inverse=True)[1].ravel()
        self.family = fit_family(*linear_inputs(self.hardware, m, n, k, 2.0), latency_ns, pairs)
        self.known = {op.signature for op in known}
        attention = next(op for op in tables[0].operations if isinstance(kind_of(op), AttentionShape))
        found = super().of(attention, KNOWN)
        assert isinstance(found, MeasuredAttention)
        self.regressor = found.regressor

    def of(self, operation: TracedOperation, model: str) -> OperationLatency:
        """Return what predicts an operation by the other model's records."""
        kind = kind_of(operation)
        if isinstance(kind, LinearLayer):
            return LinearFamily(kind, self.hardware, self.family)
        if isinstance(kind, AttentionShape):
            return MeasuredAttention(kind, self.hardware, self.regressor)
        if isinstance(kind, Collective) or operation.signature in self.known:
            return super().of(operation, model)
        return MovedBytes(self.hardware)


def draw(number: int) -> list[Batch]:
    """Return random batches within the engine's limits."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(number):
        count = int(2 ** rng.uniform(0, 8))
        contexts = tuple(map(int, rng.integers(16, int(2 ** rng.uniform(6, 13)), size=count)))
        prompt = (int(rng.integers(16, 2048 - count)),) if rng.random() < 0.4 else ()  # noqa: PLR2004 - four in ten
        batches.append(Batch((*(1,) * count, *prompt), (*contexts, *(0 for _ in prompt))))
    return batches


def main() -> None:
    """Print how far the predictions lie apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200)
    args = parser.parse_args()
    serving = ServingConfig(tensor_parallel_size=RANKS, max_model_len=16_384, max_num_seqs=257)
    table = operation_table(find_model(UNKNOWN), serving)
    folder = Path(str(resources.files("dooly") / "data" / DEVICE))
    others, own = (assemble(table, device, serving) for device in (OthersRecords(folder), DeviceLatencies(folder, LINK)))
    errors: dict[str, list[float]] = {"whole steps": [], "without collectives": []}
    for batch in draw(args.batches):
        parts = [model.step(batch).breakdown_s for model in (others, own)]
        whole, rest = (
            [sum(s for name, s in part.items() if keep or ".all_" not in name) for part in parts] for keep in (True, False)
        )
        errors["whole steps"].append(whole[0] / whole[1] - 1)
        errors["without collectives"].append(rest[0] / rest[1] - 1)
    for name, found in errors.items():
        sizes = np.abs(found)
        spread = f"median {np.median(sizes):.1%}, p90 {np.quantile(sizes, 0.9):.1%}, mean error {np.mean(found):+.1%}"
        print(f"{UNKNOWN} by {KNOWN}, {args.batches} {name}: {spread}")


if __name__ == "__main__":
    main()
