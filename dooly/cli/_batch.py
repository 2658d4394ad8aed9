"""`--batch`: which step FLOPs and bytes are shown for."""

from __future__ import annotations

import re

from dooly.batch import Batch
from dooly.errors import InvalidInputError

DEFAULT_BATCH = "decode=1,context=1024"
"""One request that decodes behind a thousand tokens."""
_USAGE = "as decode=8,context=1024 or prefill=512,context=0,requests=1, joined by +"
_KEYS = {"decode": {"context"}, "prefill": {"context", "requests"}}
_DECODE_CONTEXT = 1024
_NUMBER = re.compile(r"\d{1,7}")


def parse_batch(text: str) -> Batch:
    """Make the batch that `--batch` describes: groups of equal requests, joined by `+`.

    Args:
        text: Each group is one of

            - `decode=8,context=1024`: 8 requests that compute one token each, behind `context` tokens in the KV cache (1024
              unless given);
            - `prefill=512,context=0,requests=1`: `requests` prompts (1 unless given) that compute 512 tokens each, behind
              `context` tokens in the cache (0 unless given).

    Raises:
        InvalidInputError: The text breaks a rule, which the message names.
    """
    new: list[int] = []
    computed: list[int] = []
    for group in text.split("+"):
        kind, values = _group(text, group)
        count, tokens = (values["decode"], 1) if kind == "decode" else (values.get("requests", 1), values["prefill"])
        new += [tokens] * count
        computed += [values.get("context", _DECODE_CONTEXT if kind == "decode" else 0)] * count
    return Batch(tuple(new), tuple(computed))


def _group(text: str, group: str) -> tuple[str, dict[str, int]]:
    """Return a group's kind and its values by key."""
    values: dict[str, int] = {}
    for item in group.split(","):
        key, _, value = (part.strip() for part in item.partition("="))
        allowed = _KEYS[next(iter(values))] if values else _KEYS.keys()
        if key not in allowed or key in values:
            wanted = " or ".join(sorted(allowed - values.keys())) or "+"
            raise InvalidInputError(f"--batch {text!r}: {item.strip()!r} where {wanted} may stand; write it {_USAGE}")
        smallest = 0 if key == "context" else 1
        if not _NUMBER.fullmatch(value) or int(value) < smallest:
            raise InvalidInputError(
                f"--batch {text!r}: {key} is {value!r}, not a whole number from {smallest} to 9999999; write it {_USAGE}"
            )
        values[key] = int(value)
    return next(iter(values)), values
