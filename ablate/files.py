"""Files that are written whole or not at all, and folders that one process locks."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ablate.errors import AblateError, first_line

LOCK = ".lock"  # in a folder while a process holds it
WORKSPACE = ".preparing-"  # begins the name of a workspace


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` for a new file or folder, and moves that to `path` at the end.

    `path` never holds half of it, not even after a kill or an error: the old content stays until the move.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # several processes may write one path
    try:
        yield beside
        sync(beside)
        if beside.is_dir() and path.exists():
            shutil.rmtree(path)  # a folder is not replaced by a rename
        os.replace(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True) if beside.is_dir() else beside.unlink(missing_ok=True)
        raise


def put(prepared: Path, place: Path) -> None:
    """Moves what was prepared in a workspace to its place. A folder that another process has put there first stays."""
    sync(prepared)
    try:
        os.replace(prepared, place)
    except OSError:
        if not place.is_dir():
            raise


def write_text(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        AblateError: the file is missing or damaged, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise AblateError(f"{path}: cannot be read: {reason}; restore it, or move its folder away") from error
    if not isinstance(data, dict):
        raise AblateError(f"{path}: expected a JSON object")
    return data


def make_folder(path: Path, key: str) -> None:
    """Makes the folder `path`, the value of the option `key`, unless it exists.

    Raises:
        AblateError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AblateError(f"{key}={path}: cannot be made: {error.strerror}; choose another folder") from error


def sync(path: Path) -> None:
    """Flushes a file, or the files of a folder, to the disk, so that their content is there before a rename is."""
    for file in path.iterdir() if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def natural_order(name: object) -> list[str | int]:
    """A key for sorting names with numbers in them: 2_b before 10_a."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(name))]


# --- locks -----------------------------------------------------------------------------------------


class Held(AblateError):
    """Another process holds the folder."""


@contextmanager
def held(folder: Path, wait: bool = False) -> Iterator[None]:
    """Locks a folder for this process until the block or the process ends, however it ends.

    wait: whether to wait until the folder is free.

    Raises:
        Held: another process holds the folder.
    """
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise Held(f"{folder}: another process is at work there; wait for it, or choose another folder") from error
    except OSError:
        yield  # a file system without locks
        return
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # before the release: a waiting process notices, and makes a new one
        lock.release()


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Yields a new folder inside `folder`, locked: prepare something there, then move it into `folder`.

    The workspace is removed at the end. So are unlocked ones: killed processes left them.

    Raises:
        AblateError: `folder` cannot be written.
    """
    with ExitStack() as ends:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with held(folder, wait=True):  # else another process could remove ours before we lock it
                for stale in folder.glob(f"{WORKSPACE}*"):
                    with suppress(Held), held(stale):
                        shutil.rmtree(stale, ignore_errors=True)
                ours = Path(tempfile.mkdtemp(prefix=WORKSPACE, dir=folder))
                ends.enter_context(held(ours))
        except OSError as error:
            raise AblateError(
                f"data: cannot write in {folder} ({error.strerror}); choose another cache folder"
            ) from error
        ends.callback(shutil.rmtree, ours, ignore_errors=True)
        yield ours
