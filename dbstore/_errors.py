"""Every error the store raises: one root, one line a message (place, rule, value, next step)."""

from __future__ import annotations


class StoreError(Exception):
    """Root of all errors that the latency store raises on purpose.

    What to do: catch it where a program of yours goes on without the store; its one line names the file and the next step.
    """


class InvalidRecordError(StoreError, ValueError):
    """A record, environment, document or name breaks a rule that the message names.

    What to do: change the field that it names before you write it.
    """


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no latency store at the path or URL.

    What to do: check the path; `dooly profile` and `Store.open(path, "a")` make one.
    """


class SchemaVersionError(StoreError):
    """The store was written by a version whose layout this one cannot read.

    What to do: read it with that version of Dooly or a newer one.
    """


class DamagedRecordError(StoreError):
    """A stored file is unreadable, incomplete or altered; the message names it.

    What to do: `dooly db verify PATH` lists all such; remove what it names, or copy it from another store, and measure again.
    """


class RecordNotFoundError(StoreError, KeyError):
    """The store lacks a record or a document.

    What to do: look with `dooly db info PATH` at what there is; measure or merge what is missing.
    """

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would put the line in quotes.
        return str(self.args[0]) if self.args else ""
