"""Every error Dooly raises: one root, one line a message (place, rule, value, next step).

`dbstore` and `passes` stand on their own and have their own roots (`dbstore.StoreError`, `passes.PassError`).
"""

from __future__ import annotations

import reprlib


class DoolyError(Exception):
    """Root of all errors that Dooly raises on purpose: one line that names place, rule, value and next step.

    Those for what was asked are built-ins as well (`dooly.errors.InvalidInputError` is a `ValueError`).

    Examples:
        >>> try:
        ...     dooly.find_model("llama-9")
        ... except dooly.DoolyError as error:
        ...     print(error)
        MODEL: 'llama-9' is neither a folder nor a listed name; see `dooly models`
    """


class InvalidInputError(DoolyError, ValueError):
    """An argument, a file or a flag breaks a rule that the message names."""


class ModelNotFoundError(InvalidInputError):
    """MODEL is neither a folder with a config.json nor a listed name."""


class UnsupportedModelError(InvalidInputError):
    """The engine does not know the architecture, or tracing cannot handle it."""


class WorkloadError(InvalidInputError):
    """A workload file or specification is malformed; the message names the line."""


class TraceError(DoolyError):
    """A model could not be captured as a graph."""


class EngineError(DoolyError, RuntimeError):
    """The serving engine failed to start or to run a step."""


class MeasurementError(DoolyError, RuntimeError):
    """A measurement could not be taken."""


class MissingOperationError(DoolyError, LookupError):
    """The store lacks an operation that a step needs; the message names the command that measures it."""


class OutOfDomainError(DoolyError, ValueError):
    """A prediction was asked for outside the measured request dimensions."""


def spell(value: object) -> str:
    """Return a value as messages show it: in one line, cut in the middle where it is long."""
    return " ".join(reprlib.repr(value).split())
