"""Writing beside and renaming, so that a killed process leaves nothing that looks finished."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ablate.errors import AblateError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and nothing cleaned up
    fcntl = None

PREFIX = ".preparing-"


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A new folder within `folder`, for what will be renamed to its place beside it; gone at the end.

    Its owner holds a lock on it. The system drops the lock of a dead process, however it died, so folders
    without one are what killed processes left, and are removed here. On a file system that cannot lock
    they stay.

    Raises:
        AblateError: `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{PREFIX}*"):
            if (lock := _lock(stale, wait=False)) is not None:
                shutil.rmtree(stale, ignore_errors=True)
                os.close(lock)
        while True:
            ours = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
            lock = _lock(ours, wait=True)
            if ours.exists():  # else another process found it before it was locked, and removed it
                break
    except OSError as error:
        raise AblateError(f"data: cannot write in {folder} ({error.strerror}); choose another cache folder") from error
    try:
        yield ours
    finally:
        shutil.rmtree(ours, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, wait: bool) -> int | None:
    """A descriptor that holds the lock of `folder`; None where another process holds it or nobody can."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def sync(folder: Path) -> None:
    """Bring the files of `folder` to the disk, so that a rename after it never precedes their content."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
