"""One measured point: the raw samples of one operation in one environment at one set of request dimensions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dbstore._errors import InvalidRecordError, StoreError
from dbstore._json import JSON, JsonObject, canonical_json, digest

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def checked_name(value: str, what: str) -> str:
    """Return `value` if it can name a group in a store.

    Raises:
        InvalidRecordError: it cannot.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRecordError(
            f"{what}: needs 1 to 200 letters, digits, '.', '_', '-' and no leading '.' or '-'; got {value!r}"
        )
    return value


def content_digest(key: tuple[str, str], facts: Mapping[str, JSON], samples_ns: npt.NDArray[np.int64]) -> str:
    """Return 32 hexadecimal digits of a record's content.

    Args:
        key: Its signature and its environment's digest.
        facts: Its `point`, `attributes` and `infeasible`; whatever else there is does not enter.
        samples_ns: Its samples, shape (num_samples,).
    """
    header = {name: facts[name] for name in ("point", "attributes", "infeasible")}
    header |= {"signature": key[0], "environment": key[1]}
    # The canonical JSON of the header, put together from texts that are known already.
    text = ",".join(f'"{name}":{canonical_json(value)}' for name, value in sorted(header.items()))
    return digest(f"{{{text}}}\n".encode() + samples_ns.astype("<i8").tobytes())


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """What was measured at one point. Immutable; equal to any record of the same content.

    Raises:
        InvalidRecordError: a name is malformed, the samples are not non-negative integers of shape (num_samples,), `wall_s` is no
            duration, or there are both samples and a reason for infeasibility, or neither.
    """

    signature: str
    """Digest of the operation's canonical graph."""
    environment: str
    """Digest of the environment."""
    point: Mapping[str, JSON]
    """Sizes of the operation's own request dimensions, e.g. `{"d0": 16, "d1": 4}`: by their places in its canonical graph, since
    each model has names of its own for them. For an operation that sees each request of a batch, the batch: `{"batch": [[new,
    computed], ...]}`, with `num_new_requests` where the engine's own work counts. Kept as a hashable `JsonObject`, whose lists
    are tuples."""
    samples_ns: npt.NDArray[np.int64]
    """Every sample taken, shape (num_samples,), read only; empty if infeasible."""
    attributes: Mapping[str, JSON] = field(default_factory=lambda: JsonObject({}))
    """What else is known: timer, warnings, `wall_s` (seconds spent measuring), creation time; kept as a `JsonObject`."""
    infeasible: str | None = None
    """Why the point cannot be measured, e.g. out of memory; None if it was measured."""
    digest: str = field(init=False, repr=False)
    """32 hexadecimal digits of the content."""

    def __post_init__(self) -> None:
        checked_name(self.signature, "Record.signature")
        checked_name(self.environment, "Record.environment")
        object.__setattr__(self, "point", JsonObject(self.point))
        object.__setattr__(self, "attributes", JsonObject(self.attributes))
        object.__setattr__(self, "samples_ns", _checked_samples(self.samples_ns))
        if self.infeasible is not None and not (isinstance(self.infeasible, str) and self.infeasible.strip()):
            raise InvalidRecordError(f"Record.infeasible: needs a reason or None, got {self.infeasible!r}")
        wall_s = self.attributes.get("wall_s", 0.0)
        if isinstance(wall_s, bool) or not isinstance(wall_s, int | float) or wall_s < 0:
            raise InvalidRecordError(f"Record.attributes: wall_s needs seconds, 0 or more, got {wall_s!r}")
        if (self.infeasible is None) == (self.samples_ns.size == 0):
            raise InvalidRecordError(
                f"Record: {self.samples_ns.size} samples with infeasible={self.infeasible!r}; give either samples or a reason"
            )
        facts = {"point": self.point, "attributes": self.attributes, "infeasible": self.infeasible}
        object.__setattr__(self, "digest", content_digest(self.key, facts, self.samples_ns))

    @property
    def key(self) -> tuple[str, str]:
        """The signature and the environment digest."""
        return self.signature, self.environment

    @property
    def median_ns(self) -> float:
        """Median of the samples.

        Raises:
            StoreError: the point is infeasible.
        """
        if self.infeasible is not None:
            raise StoreError(f"Record {self.digest}: has no latency, the point is infeasible ({self.infeasible}); skip it")
        ordered, count = np.sort(self.samples_ns), self.samples_ns.size
        return (float(ordered[(count - 1) // 2]) + float(ordered[count // 2])) / 2

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Record) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)


def _checked_samples(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidRecordError(f"Record.samples_ns: needs integers of shape (num_samples,), got {array.dtype} {array.shape}")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise InvalidRecordError(f"Record.samples_ns: needs 0 to 2**63-1 ns, got {array.min()} to {array.max()}")
    samples = array.astype(np.int64)
    samples.flags.writeable = False
    return samples
