"""A store in a local folder: groups are written aside, under `.partial/`, and renamed into place.

A rename is atomic, so a killed writer leaves at most a folder under `.partial/`, which no reader looks at and which the next
writer to open the store removes. Nothing is flushed to the disk: after a power cut, digests and checksums name what was lost.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dbstore._errors import StoreError
from dbstore._files import GROUP, Files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_PARTIAL = ".partial"
# Writing a group takes milliseconds: a temporary this old has no writer, even if its process number is in use again.
_ABANDONED_AFTER_S = 3600.0
# Another writer may win the name, or remove the empty `.partial/`, between two system calls; each attempt then starts afresh.
_ATTEMPTS = 100
_LOST_RACES = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EROFS, errno.EACCES, errno.EPERM)


class LocalFiles(Files):
    """Byte storage in a folder."""

    can_sweep = True

    def __init__(self, root: str) -> None:
        self._root = Path(root).expanduser().absolute()
        self._partial = self._root / _PARTIAL

    def locate(self, path: str) -> str:
        """Return the absolute path."""
        return str(self._root / path)

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of those files that exist."""
        found, root = {}, str(self._root)
        for path in paths:
            # A path object for each of thousands of files takes as long as reading them.
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError), open(f"{root}/{path}", "rb") as file:  # noqa: PTH123
                found[path] = file.read()
        return found

    def children(self, path: str) -> tuple[str, ...]:
        """Return the sorted names of the groups right below `path`."""
        try:
            with os.scandir(self._root / path) as entries:
                return tuple(sorted(entry.name for entry in entries if os.path.exists(f"{entry.path}/{GROUP}")))  # noqa: PTH110 - fast
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def write_root(self, root_group: bytes) -> None:
        """Make the folder, and rename its group file into place."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError(f"{self._root}: needs a folder, found a file; give another path") from error
        except OSError as error:
            raise self._refusal(error) from error

        def step(aside: Path) -> None:
            _write(aside, {GROUP: root_group})
            (aside / GROUP).replace(self._root / GROUP)

        self._repeat(step, until=lambda: self.read([GROUP]).get(GROUP) == root_group)

    def place(self, path: str, files: Mapping[str, bytes]) -> None:
        """Rename the group into place, together with whichever parents are missing."""

        def step(aside: Path) -> None:
            target = self._first_missing(path)
            _write(aside, {name[len(target) + 1 :]: files[name] for name in files if name.startswith(f"{target}/")})
            aside.rename(self._root / target)

        self._repeat(step, until=(self._root / path).exists)

    def remove(self, path: str) -> None:
        """Rename the group aside, so that no reader sees half of it, and delete it."""
        target = self._root / path

        def step(aside: Path) -> None:
            target.rename(aside)

        self._repeat(step, until=lambda: not target.exists())

    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of every file outside `.partial/`."""
        root = str(self._root)
        for folder, names, files in os.walk(root):
            if folder == root and _PARTIAL in names:
                names.remove(_PARTIAL)
            for file in files:
                with suppress(FileNotFoundError):
                    size = os.stat(f"{folder}/{file}").st_size  # noqa: PTH116 - as in `read`
                    yield f"{folder}/{file}"[len(root) + 1 :].replace(os.sep, "/"), size

    def sweep(self) -> None:
        """Remove temporaries whose process is gone, or that are older than an hour."""
        with suppress(FileNotFoundError):
            for aside in tuple(self._partial.iterdir()):
                if _is_abandoned(aside):
                    self.remove(f"{_PARTIAL}/{aside.name}")
        with suppress(OSError):
            self._partial.rmdir()

    def _refusal(self, error: OSError) -> Exception:
        """Return what to raise where the system refuses a change: with a next step where there is one."""
        if error.errno not in (*_NO_ROOM, *_NO_ACCESS):
            return error
        remedy = "free some space" if error.errno in _NO_ROOM else "get leave to write there, or copy it"
        return StoreError(
            f"{self._root}: cannot be changed ({os.strerror(error.errno)}); {remedy} and run it again; nothing written is lost"
        )

    def _first_missing(self, path: str) -> str:
        parts = path.split("/")
        prefixes = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        return next((prefix for prefix in prefixes if not (self._root / prefix).exists()), path)

    def _repeat(self, step: Callable[[Path], None], until: Callable[[], bool]) -> None:
        """Run `step` on a fresh name under `.partial/` until it takes effect, and clean up what it leaves there."""
        for _ in range(_ATTEMPTS):
            if until():
                return
            aside = self._partial / f"{platform.node()}.{os.getpid()}.{uuid.uuid4().hex}"
            try:
                self._partial.mkdir(exist_ok=True)
                step(aside)
            except OSError as error:
                if error.errno not in _LOST_RACES:
                    raise self._refusal(error) from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
                with suppress(OSError):
                    self._partial.rmdir()
        if not until():
            raise StoreError(f"{self._root}: could not be changed in {_ATTEMPTS} attempts; check that the folder still exists")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    # No parents=True: if a sweep took the folder away, this must fail and start afresh, not go on with half of it.
    folder.mkdir()
    for parent in sorted({str(parent) for name in files for parent in Path(name).parents if parent.name}):
        (folder / parent).mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _is_abandoned(temporary: Path) -> bool:
    host, _, pid = temporary.name.rpartition(".")[0].rpartition(".")
    try:
        age_s = time.time() - temporary.stat().st_mtime
    except FileNotFoundError:
        return False
    return age_s > _ABANDONED_AFTER_S or (host == platform.node() and pid.isdigit() and not _is_alive(int(pid)))


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there os.kill would end the process; age alone decides
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
