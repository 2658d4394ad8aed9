"""What a search has simulated so far, in a file of JSON lines: one line a simulation, written as soon as it is done.

A search that is killed loses what was running. Lines are looked up by what their simulations depend on, so one file may serve
several searches, and a line that other code or data has made is passed over.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dooly.catalog import installed_version
from dooly.engines import engine_packages
from dooly.errors import InvalidInputError
from dooly.searching._evaluation import Evaluation

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from dooly.searching._candidate import Candidate
    from dooly.searching._load import Load

_SCHEMA = 1
_START = b'{"schema": '
_BESIDE = ("schema", "key", "model", "hardware")
"""What a line holds beside the evaluation."""
_PACKAGES = ("dooly", "passes", "dbstore")
_SHAPES_NO_SIMULATION = frozenset({"cli", "report", "adapters", "__pycache__"})
"""Folders whose files no simulation goes by."""


class SearchState:
    """The simulations of a search that are done. A context: it holds its file open.

    One process writes at a time.
    """

    def __init__(self, load: Load, path: Path | None) -> None:
        """Read what a file holds.

        Args:
            load: The requests that are served.
            path: The file, made where there is none; None keeps nothing.

        Raises:
            InvalidInputError: The file cannot be read or written, or holds something else.
        """
        self._load = "" if path is None else _load_digest(load)
        self._done = {} if path is None else _read(path)
        self._folders: dict[str, str] = {}
        try:
            self._file = None if path is None else path.open("a", encoding="utf-8")
        except OSError as error:
            raise InvalidInputError(f"{path}: cannot be written ({error.strerror}); give another") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def find(self, candidate: Candidate, rate: float) -> Evaluation | str | None:
        """Return what a simulation came to that was done before, or in one line why it could not be."""
        return self._done.get(self._key(candidate, rate)) if self._done else None

    def add(self, candidate: Candidate, rate: float, found: Evaluation | str) -> None:
        """Keep what a simulation at a rate came to, or why it could not be."""
        if self._file is None:
            return
        told = {"reason": found} if isinstance(found, str) else found.to_json()
        shown = {"model": candidate.model.name, "hardware": candidate.hardware, **told}
        line = {"schema": _SCHEMA, "key": self._key(candidate, rate), **shown}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _key(self, candidate: Candidate, rate: float) -> str:
        found = [
            _code_digest(),
            _engine_versions(candidate.serving.engine),
            self._load,
            candidate.digest(),
            self._hardware_digest(candidate.hardware),
            str(rate),
        ]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]

    def _hardware_digest(self, name: str) -> str:
        """Return the digest of a folder of a device's data, as it was when first asked for; of no file for a listed device."""
        if name not in self._folders:
            self._folders[name] = _digest(Path(name), Path(name).iterdir() if (Path(name) / "hardware.json").is_file() else ())
        return self._folders[name]


@cache
def _engine_versions(engine: str) -> list[str | None]:
    """Return the versions of an engine's distributions, None of one that is not there: what does not ship is traced by it."""
    return [installed_version(package) for package in engine_packages(engine)]


def _load_digest(load: Load) -> str:
    """Return 32 hexadecimal digits of the requests that are served."""
    rows = [astuple(request) for request in load.workload.requests]
    return hashlib.sha256(json.dumps([load.rate, rows]).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Evaluation | str]:
    """Return the simulations in a file; a last line that was cut off is taken out of it."""
    if not path.exists():
        return {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror}); give a file") from error
    whole = content[: content.rfind(b"\n") + 1]
    found: dict[str, Evaluation | str] = {}
    try:
        for line in whole.splitlines():
            key, evaluation = _parse(line)
            found[key] = evaluation
        _check_start(content[len(whole) :])
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidInputError(f"{path}: holds lines that no search has written; give another file") from error
    if len(whole) < len(content):
        with path.open("r+b") as handle:
            handle.truncate(len(whole))
    return found


def _check_start(line: bytes) -> None:
    """Refuse a line that was cut off, where it does not begin like one of a search."""
    if not line.startswith(_START[: len(line)]):
        raise ValueError


def _parse(line: bytes) -> tuple[str, Evaluation | str]:
    data = json.loads(line)
    if data["schema"] != _SCHEMA:
        raise ValueError
    told = {name: value for name, value in data.items() if name not in _BESIDE}
    return data["key"], told["reason"] if told.keys() == {"reason"} else Evaluation.from_json(told)


@cache
def _code_digest(root: Path = Path(__file__).parents[2]) -> str:
    """Return 32 hexadecimal digits of the code and data that decide what a simulation comes to."""
    files = (file for package in _PACKAGES for file in (root / package).rglob("*"))
    return _digest(root, (file for file in files if not _SHAPES_NO_SIMULATION & set(file.relative_to(root).parts)))


def _digest(root: Path, files: Iterable[Path]) -> str:
    """Return 32 hexadecimal digits of files under a folder, by their places in it and what they hold."""
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]
