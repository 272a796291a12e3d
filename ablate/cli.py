"""What the entry points share: Hydra's main, and one-line messages for a user's mistakes."""

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

import hydra
from omegaconf import DictConfig

from ablate.compose import config_dir, mistake
from ablate.errors import LED_BY, AblateWarning

if TYPE_CHECKING:
    from rich.console import Console


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], object]], Callable[[], None]]:
    """Turns a function of a configuration into a command.

    A user's mistake ends the command with one line and exit status 1; HYDRA_FULL_ERROR=1 shows the trace.
    """

    def decorate(task: Callable[[DictConfig], object]) -> Callable[[], None]:
        command = hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)(task)

        def main() -> None:
            if LED_BY in os.environ:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all ranks: rank 0 handles it
            sys.path.append(os.getcwd())  # where a user's plugins are
            given = os.environ.get("HYDRA_FULL_ERROR")
            os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of print and exit
            try:
                with contextlib.redirect_stderr(_WithoutHydrasLine(sys.stderr)), _warnings_in_one_line():
                    command()
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)
            except Exception as error:
                if given == "1" or (text := mistake(error)) is None:
                    raise
                print(f"error: {text}", file=sys.stderr)
                sys.exit(1)
            finally:
                if given is None:
                    del os.environ["HYDRA_FULL_ERROR"]
                else:
                    os.environ["HYDRA_FULL_ERROR"] = given

        return main

    return decorate


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Prints our warnings without their place in the code."""
    with warnings.catch_warnings():
        if LED_BY in os.environ:
            warnings.simplefilter("ignore")  # rank 0 prints them
        show = warnings.showwarning

        def shown(message, category, *where):
            if issubclass(category, AblateWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                show(message, category, *where)

        warnings.showwarning = shown
        yield


class _WithoutHydrasLine:
    """stderr without the line that Hydra prints before a job's exception: our own line is enough."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides:") else self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def console() -> "Console":
    """rich's console; without a terminal, wide enough for our tables."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=140)
