"""The latency model that a service answers from: swapped whole when its store changes, never half read."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dbstore import DamagedRecordError, InvalidRecordError, SchemaVersionError, Store, StoreError
from dooly.adapters.service._server_state import ServerState, server_latencies
from dooly.batch import Batch
from dooly.errors import DoolyError, InvalidInputError, OutOfDomainError
from dooly.predict import load_latency_model
from dooly.simulation import scheduler_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.adapters.service._server_state import ServerLatency, Traffic
    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import Interconnect, LatencyModel
    from dooly.simulation import SchedulerConfig

_log = logging.getLogger("dooly.serve")
_BY_CONTENT = (DoolyError, DamagedRecordError, InvalidRecordError, SchemaVersionError)
"""What reading the same content once more would raise again; all else, as a share that is away, is tried again."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A latency model with the settings that it was made for."""

    latency: LatencyModel
    """Prices steps."""
    config: SchedulerConfig
    """The scheduler's settings of the engine that is predicted."""
    loaded_at: datetime
    """When it was loaded."""
    fingerprint: str | None
    """Names what its store held then; None for a device whose measurements ship."""
    traffic: Traffic | None = None
    """The requests that its servers have in general, where somebody said."""

    def latencies(self, states: Sequence[ServerState]) -> list[ServerLatency]:
        """Predict what a request would see at each of some servers, as `server_latencies`."""
        return server_latencies(self.latency, self.config, states, self.traffic)


class ModelSlot:
    """Holds the model that is served now; a store is looked at again and again, and a model takes the place of another whole.

    A store that changed is read once two looks in a row agree that nobody writes it, and what was read is kept only if a third
    agrees as well. One that cannot be read leaves the model that there is, and says why.
    """

    def __init__(  # noqa: PLR0913 - a model, where its latencies are from, and what is served
        self,
        model: ModelSource,
        serving: ServingConfig,
        *,
        store: str | None = None,
        hardware: str | None = None,
        interconnect: Interconnect | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        """Load the model, by the records of a store or of a device whose measurements ship.

        Args:
            model: The model, by its configuration.
            serving: How it is served.
            store: Path or URL of a store.
            hardware: Name of a device, in place of a store.
            interconnect: A link between ranks in place of measured collectives.
            traffic: The requests that its servers have in general.

        Raises:
            InvalidInputError: The settings draft tokens: how many a step puts out is then not what a gateway tells.
            DoolyError: As `load_latency_model` and `scheduler_config` say.
            StoreError: The store cannot be read.
        """
        if serving.speculative_config is not None:
            raise InvalidInputError("serve: speculative decoding is not predicted for a gateway; leave speculative_config out")
        self._model, self._serving = model, serving
        self._store, self._hardware, self._interconnect = store, hardware, interconnect
        self._traffic = traffic
        self._seen: str | None = None
        self._refused: tuple[str | None, str] | None = None
        self.refusal: str | None = None
        """Why the store as it is now is not served; None where it is."""
        self.served = self._load(self._look())

    @property
    def watches(self) -> bool:
        """Whether there is a store that may change."""
        return self._store is not None

    def refresh(self) -> bool:
        """Look at the store, and take what it holds if it changed and rests; tell whether another model is served since.

        It raises nothing: whatever keeps the store from being served is in `refusal`, and the next look tries again.
        """
        try:
            loaded = self._changed()
        except (DoolyError, StoreError, OSError) as error:
            self._refuse(str(error))
            return False
        except Exception as error:  # noqa: BLE001 - the boundary: the watch goes on, whatever a store holds
            self._refuse(f"{type(error).__name__}: {error}", of_our_own=True)
            return False
        if loaded is None:
            return False
        self.served, self.refusal = loaded, None
        _log.info("%s: read again, serving what it holds now", self._store)
        return True

    def _changed(self) -> ServedModel | None:
        """Return another model where the store changed and rests; content that was refused is not read again."""
        found = self._look()
        rests, self._seen = found == self._seen, found
        if found == self.served.fingerprint:
            self.refusal = None
            return None
        if not rests:
            return None
        if self._refused is not None and self._refused[0] == found:
            self._refuse(self._refused[1])  # what was told meanwhile, as that a share was away, is over
            return None
        try:
            loaded = self._load(found)
        except _BY_CONTENT as error:
            self._refused = found, str(error)
            raise
        return loaded if self._look() == found else None

    def _refuse(self, reason: str, *, of_our_own: bool = False) -> None:
        """Keep the model that there is, and say why once; with the traceback where the error is of our own."""
        if reason != self.refusal:
            message = "%s: changed and cannot be served; serving what it held before: %s"
            _log.warning(message, self._store, reason, exc_info=of_our_own)
        self.refusal = reason

    def _look(self) -> str | None:
        """Return what names the store's content now."""
        return None if self._store is None else Store.open(self._store).fingerprint()

    def _load(self, fingerprint: str | None) -> ServedModel:
        """Load the model anew."""
        store = None if self._store is None else Store.open(self._store)
        latency = load_latency_model(store, self._model, self._serving, hardware=self._hardware, interconnect=self._interconnect)
        config = scheduler_config(self._serving, latency)
        # Tables are made and loops compiled at their first use: no request waits for it.
        with suppress(OutOfDomainError):  # a store may have been measured over less
            server_latencies(latency, config, [ServerState(input_token_length=16, num_request_running=1)])
            latency.steps([Batch((1, 16), (1, 0))])
        return ServedModel(latency, config, datetime.now(UTC), fingerprint, self._traffic)
