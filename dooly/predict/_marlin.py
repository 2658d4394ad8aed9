"""Experts of four-bit weights as Marlin multiplies them (Frantar et al., PPoPP 2025): in blocks of rows, one expert's each.

A block takes as long however few of its rows are filled, so that blocks decide, not tokens. How many rows it has goes by the
choices that fall on an expert of the rank on average: the smallest that these fill to less than nine tenths (vLLM 0.24,
`fused_marlin_moe`). Costs are linear in what is read and moved, so that they may tell a third model from the two in the imported
tables: each of these by the costs of the other alone is 14 % off on an H100 (median; p90 32 %) and 15 % on an H200 (31 %).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.predict._family_features import element_bytes
from dooly.predict._json_file import read_facts
from dooly.predict._sources import ESTIMATE_ERROR

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dooly.predict._kinds import Experts

    Floats = npt.NDArray[np.float64]
    Rows = tuple[Experts, Floats, Floats]
    """A layout with tokens and latencies in nanoseconds, shape (num_points,) each."""

BLOCK_ROWS = (8, 16, 32, 48, 64)
"""Rows that a block may have."""
_MOST_FILLED = 0.9
_OTHERS = 6
"""Terms that are not of weights."""
_UNLIKELY = 1e-6
"""Of an expert to begin one more block: so little is none."""


@dataclass(frozen=True, slots=True)
class MarlinCosts:
    """What experts take by their blocks and bytes on one device."""

    launch_ns: float
    """Of every layer, to choose experts and to launch kernels."""
    expert_ns: float
    """For each expert over all ranks, among which tokens choose."""
    split_ns: float
    """Where a rank has some of the experts only."""
    block_ns: float
    """For each block."""
    activation_byte_ns: float
    """For each byte within experts."""
    choice_byte_ns: float
    """For each byte of tokens, as often as they choose an expert of any rank."""
    weight_byte_ns: Mapping[str, tuple[float, ...]]
    """For each byte of a block's weights, by element type and as `BLOCK_ROWS`."""
    relative_error: float
    """Median relative error over a model by the costs of the others alone."""
    relative_error_p90: float
    """Its 90th percentile."""
    num_configurations: int
    """Models that were measured."""
    num_points: int
    """Measured points behind the fit."""

    def predict_ns(self, shape: Experts, m: Floats, blocks: Floats) -> Floats:
        """Return latencies in nanoseconds, shape (num_points,).

        Args:
            shape: Sizes of the experts, padded as the kernel wants them.
            m: Tokens, shape (num_points,).
            blocks: Blocks over all of the rank's experts, shape (num_points,).
        """
        others = (self.launch_ns, self.expert_ns, self.split_ns, self.block_ns, self.activation_byte_ns, self.choice_byte_ns)
        return np.asarray(_terms(shape, m, blocks) @ np.array([*others, *self.weight_byte_ns[shape.dtype]]))

    def write(self, file: Path) -> None:
        """Write the costs to a file."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> MarlinCosts:
        """Return the costs that `write` wrote.

        Raises:
            InvalidInputError: The file holds none.
        """
        return read_facts(file, lambda facts: cls(**facts), "costs of experts")


def fit_marlin(rows: Sequence[Rows]) -> MarlinCosts:
    """Fit costs to layouts whose tokens were dealt out in turn, by least squares of relative errors, none negative."""
    dtypes = sorted({shape.dtype for shape, *_ in rows})
    found, (median, p90) = _solved(rows, dtypes), np.quantile(_left_out_errors(rows), [0.5, 0.9]).tolist()
    weights = found[_OTHERS:].reshape(len(dtypes), len(BLOCK_ROWS)).tolist()
    launch, expert, split, block, activation_byte, choice_byte = found[:_OTHERS].tolist()
    return MarlinCosts(
        launch_ns=launch,
        expert_ns=expert,
        split_ns=split,
        block_ns=block,
        activation_byte_ns=activation_byte,
        choice_byte_ns=choice_byte,
        weight_byte_ns={dtype: tuple(costs) for dtype, costs in zip(dtypes, weights, strict=True)},
        relative_error=median,
        relative_error_p90=p90,
        num_configurations=len({_model(shape) for shape, *_ in rows}),
        num_points=sum(len(m) for _, m, _ in rows),
    )


def dealt_blocks(shape: Experts, m: Floats) -> Floats:
    """Return a rank's blocks where `m` tokens are dealt out in turn, as in the imported tables, shape (num_points,)."""
    choices = _choices(shape, m)
    reached = np.minimum(choices, shape.num_local_experts)
    return np.asarray(reached * np.ceil(np.maximum(choices / reached, 1) / block_rows(shape, m)))


def expected_blocks(shape: Experts, m: Floats) -> Floats:
    """Return a rank's blocks that are expected where each of `m` tokens chooses by chance, shape (num_points,).

    An expert's tokens are binomial; each further block that they begin counts by how likely it is.
    """
    from scipy.stats import binom

    chance, rows = shape.top_k / shape.num_experts, block_rows(shape, m)
    most = int(np.ceil(m / rows).max())
    found = np.zeros(len(m))
    for begun in range(most):
        likely = binom.sf(begun * rows, m, chance)
        found += likely
        if likely.max() < _UNLIKELY:
            break
    return found * shape.num_local_experts


def block_rows(shape: Experts, m: Floats) -> Floats:
    """Return the rows of a block over `m` tokens, shape (num_points,)."""
    each = m * shape.top_k / shape.num_local_experts
    return np.asarray(np.select([each / rows < _MOST_FILLED for rows in BLOCK_ROWS], BLOCK_ROWS, BLOCK_ROWS[-1]))


def _left_out_errors(rows: Sequence[Rows]) -> Floats:
    """Return relative errors over each model by the others, whatever their element types cost; of one alone, an estimate's."""
    models = sorted({_model(shape) for shape, *_ in rows})
    errors = []
    for model in models if len(models) > 1 else ():
        costs = _solved([row for row in rows if _model(row[0]) != model], ("",))
        for shape, m, latency_ns in (row for row in rows if _model(row[0]) == model):
            errors.append(np.abs(_terms(shape, m, dealt_blocks(shape, m)) @ costs / latency_ns - 1))
    return np.concatenate(errors or [np.array([ESTIMATE_ERROR])])


def _model(shape: Experts) -> tuple[int, int, int]:
    return shape.hidden_size, shape.top_k, shape.num_experts


def _solved(rows: Sequence[Rows], dtypes: Sequence[str]) -> Floats:
    """Return what each term costs: those not of weights, then those of each element type, or of all under one name."""
    from scipy.optimize import nnls

    parts = []
    for shape, m, latency_ns in rows:
        terms = _terms(shape, m, dealt_blocks(shape, m))
        part = np.zeros((len(m), _OTHERS + len(BLOCK_ROWS) * len(dtypes)))
        own = _OTHERS + len(BLOCK_ROWS) * (dtypes.index(shape.dtype) if shape.dtype in dtypes else 0)
        part[:, :_OTHERS], part[:, own : own + len(BLOCK_ROWS)] = terms[:, :_OTHERS], terms[:, _OTHERS:]
        parts.append(part / latency_ns[:, None])
    relative = np.concatenate(parts)
    scales = np.maximum(relative.max(axis=0), np.finfo(float).tiny)
    solved, _ = nnls(relative / scales, np.ones(len(relative)))
    return np.asarray(solved / scales)


def _terms(shape: Experts, m: Floats, blocks: Floats) -> Floats:
    """Return the amounts that cost, in the order of `MarlinCosts`, shape (num_points, 11)."""
    ones, is_split = np.ones(len(m)), shape.num_local_experts < shape.num_experts
    weight_bytes = element_bytes(shape.dtype) * 3 * shape.hidden_size * shape.intermediate_size * blocks
    rows = block_rows(shape, m)
    return np.column_stack(
        [
            ones,
            shape.num_experts * ones,
            is_split * ones,
            blocks,
            2 * _choices(shape, m) * (2 * shape.hidden_size + 3 * shape.intermediate_size),
            2 * m * shape.top_k * shape.hidden_size,
            *(weight_bytes * (rows == size) for size in BLOCK_ROWS),
        ]
    )


def _choices(shape: Experts, m: Floats) -> Floats:
    return m * shape.top_k * shape.num_local_experts / shape.num_experts
