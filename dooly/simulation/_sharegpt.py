"""ShareGPT's conversations as requests: how long prompts and answers are is what a tokenizer makes of their text."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from dooly.errors import InvalidInputError, WorkloadError, pip_install

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_ASKING = {"human", "user"}
_LEAST_TOKENS = 4
_MOST_PROMPT_TOKENS = 1024
_MOST_TOKENS = 2048


class Exchange(NamedTuple):
    """A prompt and the answer that the file has to it, in tokens."""

    num_prompt_tokens: int
    num_output_tokens: int


def read_sharegpt(path: Path, tokenizer: Path, num_exchanges: int | None = None) -> Iterator[list[Exchange]]:
    """Yield conversations, each as its exchanges in order; those are left out that begin with no question and answer.

    Texts are counted as they are asked for.

    Args:
        path: JSON: a list of `{"conversations": [{"from": "human"|"gpt", "value": TEXT}, ...]}`.
        tokenizer: A `tokenizer.json` of Hugging Face's tokenizers, or a folder that holds one.
        num_exchanges: Count only so many of each conversation, the first.

    Raises:
        WorkloadError: A file cannot be read, or is of no such form.
        InvalidInputError: The package `tokenizers` is not installed.
    """
    count = _counter(tokenizer)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorkloadError(f"{path}: cannot be read as ShareGPT's JSON ({error}); give a list of conversations") from error
    if not isinstance(found, list):
        raise WorkloadError(f"{path}: must hold a list of conversations, got {type(found).__name__}")
    for number, entry in enumerate(found):
        if exchanges := list(islice(_exchanges(f"{path}: entry {number}", entry, count), num_exchanges)):
            yield exchanges


def is_usual(exchange: Exchange) -> bool:
    """Return whether `vllm bench serve` would keep an exchange: at least 4 tokens each, at most 1,024 and 2,048 together."""
    prompt, output = exchange
    return min(exchange) >= _LEAST_TOKENS and prompt <= _MOST_PROMPT_TOKENS and prompt + output <= _MOST_TOKENS


def _exchanges(place: str, entry: Any, count: Any) -> Iterator[Exchange]:  # noqa: ANN401 - JSON
    """Yield each question that an answer follows, up to the first message out of turn."""
    try:
        messages: Sequence[tuple[str, str]] = [(str(m["from"]), str(m["value"])) for m in entry["conversations"]]
    except (LookupError, TypeError) as error:
        raise WorkloadError(f'{place}: must be {{"conversations": [{{"from": ..., "value": ...}}]}}; correct it') from error
    for (asking, question), (answering, answer) in zip(messages[::2], messages[1::2], strict=False):
        exchange = Exchange(count(question), count(answer))
        if asking not in _ASKING or answering in _ASKING or not all(exchange):
            return
        yield exchange


def _counter(tokenizer: Path) -> Any:  # noqa: ANN401 - a function from text to a number
    """Return what counts a text's tokens, special ones not among them."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InvalidInputError(f"sharegpt: tokenizers is not installed; install it with {pip_install('sharegpt')}") from error
    path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise WorkloadError(f"{path}: cannot be read as a tokenizer ({error}); give a model's tokenizer.json") from error
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
