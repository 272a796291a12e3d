"""How far a study is: told by each run as it ends, or read from the run folders where others write them."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.errors import AblateError
from ablate.files import write_json
from ablate.run import read_summary

ENDED = ("finished", "diverged")  # a run that did either is not run again
_OVER = (*ENDED, "failed")
_FILE = "progress.json"


def status_of(path: Path) -> str | None:
    """What the run in a folder says of itself; None: there is none yet."""
    try:
        return read_summary(path).get("status")
    except AblateError:
        return None


@dataclass(frozen=True)
class Progress:
    """The runs of a study, and how many of them had ended when those at work now began."""

    folder: Path
    paths: list[str]
    ended_before: int
    began: float

    @classmethod
    def begin(cls, folder: Path, paths: list[Path]) -> "Progress":
        names = [str(path.relative_to(folder)) for path in paths]
        progress = cls(folder, names, 0, time.time())
        progress = cls(folder, names, len(progress.statuses(ENDED)), progress.began)
        write_json(folder / _FILE, {"paths": names, "ended_before": progress.ended_before, "began": progress.began})
        return progress

    @classmethod
    def read(cls, folder: Path) -> "Progress | None":
        try:
            found: dict[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            return cls(folder, found["paths"], found["ended_before"], found["began"])
        except (OSError, ValueError, KeyError):
            return None

    def statuses(self, wanted: tuple[str, ...]) -> list[str]:
        return [status for path in self.paths if (status := status_of(self.folder / path)) in wanted]

    def line(self) -> str:
        """`study position: 7 of 18 runs, 1 diverged, about 24 min left`."""
        ended = self.statuses(ENDED)
        diverged, failed = ended.count("diverged"), len(self.statuses(("failed",)))
        parts = [f"study {self.folder.name}: {len(ended)} of {len(self.paths)} runs"]
        parts += [f"{diverged} diverged"] * bool(diverged) + [f"{failed} failed"] * bool(failed)
        done, left = len(ended) - self.ended_before, len(self.paths) - len(ended)
        if done and left:
            seconds = (time.time() - self.began) / done * left
            parts.append(f"about {_time(seconds)} left")
        return ", ".join(parts)


def tell(run_dir: str) -> None:
    """Prints how far the study is that the run in this folder is one of."""
    progress = Progress.read(Path(run_dir).parents[2])
    if progress is not None:
        print(progress.line(), flush=True)


@contextmanager
def watched(progress: Progress, every_s: float = 2.0) -> Iterator[None]:
    """Prints how far the study is whenever that changes, while other processes run it."""
    done = threading.Event()
    shown = progress.statuses(_OVER)

    def show() -> None:
        nonlocal shown
        now = progress.statuses(_OVER)
        if now != shown:
            shown = now
            print(progress.line(), flush=True)

    def watch() -> None:
        while not done.wait(every_s):
            show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        show()


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
