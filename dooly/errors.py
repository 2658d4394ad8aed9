"""Every error Dooly raises: one root, one line a message (place, rule, value, next step).

`dbstore` and `passes` stand on their own and have their own roots (`dbstore.StoreError`, `passes.PassError`).
"""

from __future__ import annotations

import reprlib


class DoolyError(Exception):
    """Root of all errors that Dooly raises on purpose: one line that names place, rule, value and next step.

    Those for what was asked are built-ins as well (`dooly.errors.InvalidInputError` is a `ValueError`).

    What to do: catch it where a program of yours goes on in any case.

    Examples:
        >>> try:
        ...     dooly.find_model("llama-9")
        ... except dooly.DoolyError as error:
        ...     print(error)
        MODEL: 'llama-9' is neither a folder nor a listed name; see `dooly models`
    """


class InvalidInputError(DoolyError, ValueError):
    """An argument, a file or a flag breaks a rule that the message names.

    What to do: change the value that the message quotes as it says; the command line exits with 2.
    """


class ModelNotFoundError(InvalidInputError):
    """MODEL is neither a folder with a config.json nor a listed name.

    What to do: take a name that `dooly models` lists, or the path of a folder that holds a model's config.json.
    """


class UnsupportedModelError(InvalidInputError):
    """The engine does not know the architecture, or tracing cannot handle it.

    What to do: see by `dooly models` what traces; another --quantization, --dtype or parallel layout may be known.
    """


class WorkloadError(InvalidInputError):
    """A workload file or specification is malformed; the message names the line.

    What to do: mend that line, or the part of the specification that is quoted.
    """


class TraceError(DoolyError):
    """A model could not be captured as a graph.

    What to do: go to the file and line that the message begins with, and change that code as it says.
    """


class OutputError(DoolyError, OSError):
    """A file of results could not be written.

    What to do: make room, or give another file; the command line has printed its table before.
    """


class EngineError(DoolyError, RuntimeError):
    """The serving engine failed to start or to run a step.

    What to do: install what it lacks, or give it more memory or smaller limits; --debug shows the engine's own traceback.
    """


class MeasurementError(DoolyError, RuntimeError):
    """A measurement could not be taken.

    What to do: free the device of other work or give it smaller limits, and call again: what was measured is kept.
    """


class MissingOperationError(DoolyError, LookupError):
    """The store lacks an operation that a step needs; the message names the command that measures it.

    What to do: run that command, or give --hardware a device that has it.
    """


class OutOfDomainError(DoolyError, ValueError):
    """A prediction was asked for outside the measured request dimensions.

    What to do: profile with larger limits, ask for a smaller batch, or allow it with `extrapolate=True`, which flags the answer.
    """


def pip_install(extra: str) -> str:
    """Return the command that installs what an extra of Dooly brings, from an index of packages and in a checkout."""
    return f"`pip install 'dooly-llm[{extra}]'`, in a checkout `pip install '.[{extra}]'`"


def spell(value: object) -> str:
    """Return a value as messages show it: in one line, cut in the middle where it is long."""
    return " ".join(reprlib.repr(value).split())
