"""ShareGPT's conversations, counted by a tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dooly.errors import WorkloadError
from dooly.simulation import Turn, parse_workload

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Write a tokenizer of words: a token each."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # noqa: S106 - no password
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def conversation(*lengths: int, first: str = "human") -> dict[str, Any]:
    """Return an entry whose messages have so many words."""
    second = "gpt" if first == "human" else "human"
    messages = [{"from": (first, second)[place % 2], "value": "word " * length} for place, length in enumerate(lengths)]
    return {"id": "x", "conversations": messages}


def spec(folder: Path, entries: object, **options: object) -> str:
    """Write a file of these entries, and return the specification that reads it."""
    path = folder / "sharegpt.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    more = "".join(f",{key}={value}" for key, value in options.items())
    return f"sharegpt:path={path},tokenizer={folder},rate=inf{more}"


def test_first_exchanges_of_usual_lengths(tokenizer: Path) -> None:
    """Without a pause a conversation is its first exchange; those too short or long for `vllm bench serve` are counted."""
    entries = [conversation(10, 20, 30, 40), conversation(3, 9), conversation(1025, 9), conversation(1024, 1024, 5)]
    entries += [conversation(1000, 1049), conversation(7), conversation(8, 9, first="gpt")]
    served = parse_workload(spec(tokenizer, entries))
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in served.requests] == [(10, 20), (1024, 1024)]
    assert served.notes[0].endswith(
        "3 conversations left out whose first exchange is shorter or longer than `vllm bench serve` takes"
    )


def test_whole_conversations(tokenizer: Path) -> None:
    """With a pause, each exchange is a turn; a message out of turn ends the conversation."""
    entries = [conversation(10, 20, 30, 40, 5), conversation(2, 3)]
    served = parse_workload(spec(tokenizer, entries, think=2)).requests
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in served] == [(10, 20), (60, 40), (2, 3)]
    assert [r.turn for r in served] == [Turn(0), Turn(0, 0, 2_000_000_000), Turn(1)]


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ({"a": 1}, {}, "must hold a list of conversations, got dict"),
        ([{"messages": []}], {}, "entry 0: must be"),
        ([conversation(10, 20)], {"requests": 2}, "holds only 1 such conversations; lower requests=2"),
        ([conversation(10, 20)], {"requests": -1}, "requests must be at least 1, got -1"),
        ([], {}, "the file holds no such conversation; give another"),
        ([conversation(10, 20)], {"seed": -1}, "seed must be at least 0, got -1"),
        ([conversation(10, 20)], {"turns": 2}, "unknown key 'turns'"),
    ],
)
def test_what_is_none_is_refused(tokenizer: Path, entries: object, options: dict[str, int], message: str) -> None:
    """The message names the place and the rule."""
    with pytest.raises(WorkloadError, match=message):
        parse_workload(spec(tokenizer, entries, **options))


def test_reading_stops_where_there_are_enough(tokenizer: Path) -> None:
    """What lies behind the conversations asked for is not looked at: an entry that is none does no harm, nor is it counted."""
    entries = [conversation(3, 9), conversation(10, 20), {"messages": []}, conversation(3, 9)]
    served = parse_workload(spec(tokenizer, entries, requests=1))
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in served.requests] == [(10, 20)]
    assert ": 1 conversations left out" in served.notes[0]


def test_a_tokenizer_that_is_none(tokenizer: Path) -> None:
    """A file that is no tokenizer is named."""
    text = spec(tokenizer, [conversation(10, 20)])
    (tokenizer / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(WorkloadError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        parse_workload(text)
