"""Predict Qwen3 32B on two ranks by the records of Llama 3.1 8B alone, and compare with its own records of the same device.

    python benchmarks/cross_model.py [--batches 200]

Linear layers go by a family fitted to Llama's ten pairs of widths, attention by Llama's regressor (as a ratio to the roofline),
and all that Llama has not by its bytes. Collectives over a stated link are the same on both sides, so errors also stand without
them. Batches are drawn at random: decodes of unequal contexts, four in ten beside a prompt.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.predict import Interconnect, load_latency_model
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._estimated import MovedBytes
from dooly.predict._families import LinearFamily
from dooly.predict._family import fit_family
from dooly.predict._family_features import element_bytes, linear_inputs
from dooly.predict._fit_hardware import assemble, device_folder
from dooly.predict._kinds import AttentionShape, Collective, LinearLayer, kind_of
from dooly.predict._measured import MeasuredAttention

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.engines import ModelSource
    from dooly.predict._latency_model import LatencyModel
    from dooly.predict._sources import OperationLatency
    from dooly.tracing import TracedOperation

DEVICE, KNOWN, UNKNOWN, RANKS = "rtxpro6000", "llama-3.1-8b", "qwen3-32b", 2
LINK = Interconnect(16e9, 20_000.0)


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


def load_model_by_others(
    hardware: str, model: ModelSource, serving: ServingConfig, known: ModelSource, interconnect: Interconnect
) -> LatencyModel:
    """Return the latency model of a model by what was measured of another one on one and two ranks.

    Linear layers go by a family fitted to the other model's, attention by its regressor of ratios to the roofline, and all that
    the other model has not by its bytes.

    Args:
        hardware: Name of a device whose single operations were measured.
        model: The model to predict.
        serving: The engine settings to predict.
        known: The model whose records may be used.
        interconnect: The link that prices collectives.

    Raises:
        InvalidInputError: There is no such device, or nothing of the known model was measured on it.
    """
    with device_folder(hardware) as folder:
        return assemble(operation_table(model, serving), _OtherRecords(folder, known, interconnect), serving)


class _OtherRecords(DeviceLatencies):
    """A device's latencies by the records of one model."""

    def __init__(self, folder: Path, known: ModelSource, interconnect: Interconnect) -> None:
        super().__init__(folder, interconnect)
        tables = [operation_table(known, ServingConfig(tensor_parallel_size=ranks)) for ranks in (1, 2)]
        operations = {op.signature: op for table in tables for op in table.operations if op.signature in self.measured}
        rows = [
            (size, kind.n, kind.k, ns)
            for op in operations.values()
            if isinstance(kind := kind_of(op), LinearLayer)
            for size, ns in zip(self.measured[op.signature].sizes, self.measured[op.signature].known_ns, strict=True)
        ]
        if not rows:
            raise InvalidInputError(f"{known.name}: nothing of it was measured on {self.hardware.name}; name a model that was")
        m, n, k, latency_ns = np.array(rows).T
        pairs = np.unique(np.stack([n, k]), axis=1, return_inverse=True)[1].ravel()
        self._linear = fit_family(*linear_inputs(self.hardware, m, n, k, element_bytes("bfloat16")), latency_ns, pairs)
        self._known = operations.keys()
        attention = next(op for op in tables[0].operations if isinstance(kind_of(op), AttentionShape))
        found = super().of(attention, known.name)
        if not isinstance(found, MeasuredAttention):
            raise InvalidInputError(f"{known.name}: its attention was not measured on {self.hardware.name}; name another model")
        self._attention = found.regressor

    def of(self, operation: TracedOperation, model: str) -> OperationLatency:
        """Return what predicts an operation by the other model's records."""
        kind = kind_of(operation)
        if isinstance(kind, LinearLayer):
            return LinearFamily(kind, self.hardware, self._linear)
        if isinstance(kind, AttentionShape):
            return MeasuredAttention(kind, self.hardware, self._attention)
        if isinstance(kind, Collective) or operation.signature in self._known:
            return super().of(operation, model)
        return MovedBytes(self.hardware)


def main() -> None:
    """Print how far the predictions lie apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200)
    args = parser.parse_args()
    serving = ServingConfig(tensor_parallel_size=RANKS, max_model_len=16_384, max_num_seqs=257)
    model = find_model(UNKNOWN)
    others = load_model_by_others(DEVICE, model, serving, find_model(KNOWN), LINK)
    own = load_latency_model(model=model, serving=serving, hardware=DEVICE, interconnect=LINK)
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
