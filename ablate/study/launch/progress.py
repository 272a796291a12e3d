"""The progress of a study, read from the summaries in its run folders.

Hydra's basic launcher runs jobs in the sweeper's process, and each job prints the progress when it ends. Jobs of other
launchers print to files of their own, so a thread of the sweeper watches their folders and prints the progress.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ablate.errors import AblateError
from ablate.files import read_json, write_json
from ablate.run import read_summary
from ablate.words import duration

ENDED = ("finished", "diverged")  # such a run is not run again
_OVER = (*ENDED, "failed")
_FILE = "progress.json"


def status_of(path: Path) -> str | None:
    """The status in the folder's summary.json; None if there is no readable one."""
    try:
        return read_summary(path).get("status")
    except AblateError:
        return None


@dataclass(frozen=True)
class Progress:
    """All runs of a study (`paths`, relative to its folder), and how many had ended when the current ones began.

    began: the time of that count, in seconds since the epoch.
    """

    folder: Path
    paths: list[str]
    ended_before: int
    began: float

    @classmethod
    def begin(cls, folder: Path, paths: list[Path]) -> "Progress":
        """Starts counting now, and stores the start in the study's folder for `read`."""
        names = [str(path.relative_to(folder)) for path in paths]
        ended, now = sum(status_of(path) in ENDED for path in paths), time.time()
        write_json(folder / _FILE, {"paths": names, "ended_before": ended, "began": now})
        return cls(folder, names, ended, now)

    @classmethod
    def read(cls, folder: Path) -> "Progress | None":
        """The progress that `begin` stored; None if none is stored."""
        try:
            kept = read_json(folder / _FILE)
            return cls(folder, kept["paths"], kept["ended_before"], kept["began"])
        except (AblateError, KeyError):
            return None

    def statuses(self, wanted: tuple[str, ...]) -> list[str]:
        """The status of each run whose status is in `wanted`."""
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
            parts.append(f"about {duration(seconds)} left")
        return ", ".join(parts)


def tell(run_dir: str) -> None:
    """Prints the progress of the study that the run in this folder belongs to."""
    progress = Progress.read(Path(run_dir).parents[2])
    if progress is not None:
        print(progress.line(), flush=True)


@contextmanager
def watched(progress: Progress, every_s: float = 2.0) -> Iterator[None]:
    """Prints the progress whenever a run in another process ends, until the block ends."""
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
