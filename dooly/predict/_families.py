"""Operations that were not measured themselves, by the families that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.predict._family_features import (
    decode_inputs,
    element_bytes,
    experts_inputs,
    latent_decode_inputs,
    latent_prefill_inputs,
    linear_inputs,
    prefill_inputs,
)
from dooly.predict._kinds import LatentAttention
from dooly.predict._marlin import expected_blocks
from dooly.predict._sources import ESTIMATE_ERROR

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.predict._family import FamilyRegressor
    from dooly.predict._features import AttentionWork, BatchArrays
    from dooly.predict._hardware import Hardware
    from dooly.predict._kinds import AttentionShape, Experts, LinearLayer
    from dooly.predict._marlin import MarlinCosts
    from dooly.predict._operation import OperationWork
    from dooly.predict._sources import OperationLatency, Source

    Floats = npt.NDArray[np.float64]


_READ_ONCE = ("FLASH_ATTN",)
"""Attention backends that are measured by families, in which all queries of a request and a key/value head share one tile.

FlashAttention 3 packs the heads that share keys with the queries at hand. In the tables of H100 and H200, decodes with four times
the query heads over the same keys take 0.7 % longer by the median of 4,086 pairs, nine of ten at most 5.8 %; with eight times,
1.0 and 9.3 %.
"""

BLOCKS_ERROR = 0.16
"""Median relative error of products in blocks by `without_launches_ns`, over the whole modules that tell of them.

4,887 and 4,863 of an H200 and an H100, 15.6 % each (`benchmarks/block_products.py`): what a module takes less its other parts.
"""


@dataclass(frozen=True, slots=True)
class LinearFamily:
    """A linear layer, by the family of all."""

    layer: LinearLayer
    """Its widths."""
    hardware: Hardware
    """The device."""
    regressor: FamilyRegressor
    """The family's regressor."""
    source: Source = "family"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error over widths that the family did not know; an estimate's where the element type is another."""
        return ESTIMATE_ERROR if self.source == "estimated" else self.regressor.relative_error

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        m = work.sizes(batches)
        n, k = (np.full(len(m), float(size)) for size in (self.layer.n, self.layer.k))
        return self.regressor.predict_ns(*linear_inputs(self.hardware, m, n, k, element_bytes(self.layer.dtype)))


@dataclass(frozen=True, slots=True)
class BlockScaledLinear:
    """A linear layer of a scale for each block, where the tables may have timed launches alone: then by one of a single scale.

    Whole modules in the same tables, timed in one CUDA graph, tell that such products take no longer
    (`benchmarks/block_products.py`).
    """

    blocks: LinearFamily
    """By the family of its own kind."""
    single: LinearFamily
    """By the family of products of a single scale."""
    launches_ns: float
    """What launches take at most."""
    source: Source = "family"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error of such products by whole modules, or over widths that the families did not know if more."""
        return max(self.blocks.relative_error, self.single.relative_error, BLOCKS_ERROR)

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        return without_launches_ns(self.blocks.latency_ns(work, batches), self.single.latency_ns(work, batches), self.launches_ns)


def without_launches_ns(blocks: Floats, single: Floats, launches_ns: float) -> Floats:
    """Return what products in blocks take, in nanoseconds, shape (num_points,): never less where either of both takes more.

    As long as launches may hide it, what they take beyond a product of a single scale counts nothing; from twice as long on, all.

    Args:
        blocks: What the tables say of them, shape (num_points,).
        single: What products of a single scale take, shape (num_points,).
        launches_ns: What launches take at most.
    """
    counted = np.clip(blocks / launches_ns - 1, 0, 1)
    return np.asarray(np.minimum(blocks, single) + counted * np.maximum(blocks - single, 0))


@dataclass(frozen=True, slots=True)
class AttentionFamily:
    """Attention, by the families of its decodes and prefills; in a batch of both, one after the other."""

    shape: AttentionShape | LatentAttention
    """Its heads."""
    hardware: Hardware
    """The device."""
    decodes: FamilyRegressor
    """The regressor of batches that decode."""
    prefills: FamilyRegressor
    """The regressor of batches that prefill."""
    source: Source = "family"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error over shapes that the families did not know, of the worse of the two."""
        return max(self.decodes.relative_error, self.prefills.relative_error)

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        amounts = batches.attention(work.window, verifies_as_decodes=self.hardware.attention_backend in _READ_ONCE)
        has_decodes, has_prefills = amounts.num_decodes > 0, amounts.num_prefills > 0
        total = np.zeros(len(has_decodes))
        if has_decodes.any():
            total += np.where(has_decodes, self.decodes.predict_ns(*self._inputs(amounts, prefills=False)), 0)
        if has_prefills.any():
            total += np.where(has_prefills, self.prefills.predict_ns(*self._inputs(amounts, prefills=True)), 0)
        return np.asarray(total - np.where(has_decodes & has_prefills, self.hardware.launch_ns, 0))

    def _inputs(self, work: AttentionWork, *, prefills: bool) -> tuple[Floats, Floats]:
        if isinstance(self.shape, LatentAttention):
            return (latent_prefill_inputs if prefills else latent_decode_inputs)(self.hardware, self.shape, work)
        return (prefill_inputs if prefills else decode_inputs)(self.hardware, self.shape, work)


@dataclass(frozen=True, slots=True)
class ExpertsFamily:
    """A mixture of experts, by the family of all, and the products that it runs beside them.

    Each expert is taken to be as likely as any other, whatever the other tokens choose: of E experts M choices reach
    E (1 - (1 - 1/E)**M). The family knows tokens dealt out in turn, of which M choices reach M experts until all are.
    """

    shape: Experts
    """Its sizes."""
    hardware: Hardware
    """The device."""
    regressor: FamilyRegressor
    """The family's regressor."""
    beside: tuple[OperationLatency, ...]
    """Its router's product, where the operation holds it, and those of shared experts, one after the other."""
    source: Source = "family"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error over mixtures that the family did not know."""
        return self.regressor.relative_error

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        m, turn = work.sizes(batches), self.shape.num_experts / self.shape.top_k
        reaching = -turn * np.expm1(m * self.shape.top_k * np.log1p(-1 / self.shape.num_experts))
        # As many experts as are reached, and then what more tokens take of the same experts.
        experts = self._dealt_ns(reaching) + self._dealt_ns(m) - self._dealt_ns(np.minimum(m, turn))
        return experts + sum(product.latency_ns(work, batches) for product in self.beside)

    def _dealt_ns(self, m: Floats) -> Floats:
        """Return the latency over tokens that are dealt out in turn, in nanoseconds, shape (num_points,)."""
        return self.regressor.predict_ns(*experts_inputs(self.hardware, self.shape, m))


@dataclass(frozen=True, slots=True)
class MarlinExperts:
    """A mixture of experts of four-bit weights by what blocks of rows cost, and the products that it runs beside them.

    Each expert is taken to be as likely as any other, whatever the other tokens choose.
    """

    shape: Experts
    """Its sizes."""
    costs: MarlinCosts
    """What its blocks and bytes cost on the device."""
    beside: tuple[OperationLatency, ...]
    """Its router's product, where the operation holds it, and those of shared experts, one after the other."""
    source: Source = "family"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error over models by the costs of others."""
        return self.costs.relative_error

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        m = work.sizes(batches)
        experts = self.costs.predict_ns(self.shape, m, expected_blocks(self.shape, m))
        return experts + sum(product.latency_ns(work, batches) for product in self.beside)
