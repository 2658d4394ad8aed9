"""What a model's configuration must hold before an engine builds it, and how an engine's refusal of one reads."""

from __future__ import annotations

from textwrap import shorten
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from dooly.engines._config import ModelSource

_WIDTH = 400
"""Characters of the longest reason that is shown whole."""
_COMMON_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers")
"""Sizes of every text model in Transformers: a configuration class maps them to the names of its family."""


def check_sizes(model: ModelSource, config: Any) -> None:  # noqa: ANN401 - a Transformers configuration
    """Check that a model has a vocabulary, a width and layers: engines build models without, and fail on them much later.

    Raises:
        InvalidInputError: One of them is below 1; the message gives it the name that it has in `config.json`.
    """
    text = config.get_text_config()
    for name in _COMMON_SIZES:
        value = getattr(text, name, 1)
        if isinstance(value, int) and value < 1:
            field = text.attribute_map.get(name, name)
            raise InvalidInputError(f"{model.folder / 'config.json'}: {field}: {value} is not at least 1; correct it")


def first_line(error: BaseException) -> str:
    """Return the telling line of what an engine or Transformers raised over a configuration.

    Of validation errors that is the first field's: pydantic's list them, Transformers' have them as their cause. vLLM adds a list
    of some hundred architectures.
    """
    if type(error).__name__.startswith("StrictDataclass") and error.__cause__ is not None:
        text = str(error.__cause__)
    elif type(error).__name__ == "ValidationError" and callable(getattr(error, "errors", None)):
        first: Any = error.errors()[0]  # type: ignore[attr-defined]
        text = ": ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])
    elif isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError):  # alone, `'rope'` tells nothing
        text = f"{type(error).__name__}: {error}"
    else:
        text = str(error) or _unsaid(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    # A line that announces reasons says nothing without them.
    line = " ".join(lines) if lines[0].endswith(":") else lines[0]
    return shorten(line.partition(" Supported architectures:")[0], _WIDTH, placeholder=" ...")


def _unsaid(error: BaseException) -> str:
    """Return an error that says nothing by its name and the line that raised it, as of an `assert`."""
    frames = extract_tb(error.__traceback__)
    return ": ".join([type(error).__name__, *(frame.line for frame in frames[-1:] if frame.line)])
