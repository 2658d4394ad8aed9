"""Every error the store raises: one root, one line a message (place, rule, value, next step)."""

from __future__ import annotations


class StoreError(Exception):
    """Root of all errors that the latency store raises on purpose."""


class InvalidRecordError(StoreError, ValueError):
    """A record, environment, document or name breaks a rule that the message names."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no latency store at the path or URL."""


class SchemaVersionError(StoreError):
    """The store was written by a version whose layout this one cannot read."""


class DamagedRecordError(StoreError):
    """A stored file is unreadable, incomplete or altered; the message names it."""


class RecordNotFoundError(StoreError, KeyError):
    """The store lacks a record or a document."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would put the line in quotes.
        return str(self.args[0]) if self.args else ""
