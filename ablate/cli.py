"""What the entry points share: Hydra's main, and mistakes told in one line."""

import contextlib
import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ablate.compose import config_dir
from ablate.errors import AblateError, AblateWarning, did_you_mean


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], object]], Callable[[], None]]:
    """Makes a function of a configuration into a command.

    A mistake that the user can mend ends it with one line and exit status 1;
    HYDRA_FULL_ERROR=1 shows the trace.
    """

    def decorate(task: Callable[[DictConfig], object]) -> Callable[[], None]:
        command = hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)(task)

        def main() -> None:
            sys.path.append(os.getcwd())  # where a user's plugins lie
            trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise, not print and exit
            try:
                with contextlib.redirect_stderr(_WithoutHydrasLine(sys.stderr)), _warnings_in_one_line():
                    command()
            except (AblateError, HydraException, OmegaConfBaseException) as error:
                if trace:
                    raise
                print(f"error: {one_line(error)}", file=sys.stderr)
                sys.exit(1)
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)

        return main

    return decorate


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Ours, without the place in the code that gave them."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def shown(message, category, *where):
            if issubclass(category, AblateWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                show(message, category, *where)

        warnings.showwarning = shown
        yield


class _WithoutHydrasLine:
    """stderr, less the line with which Hydra introduces the exception of a job: ours says it all."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides:") else self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def one_line(error: BaseException) -> str:
    """The key, what is wrong with it and the remedy."""
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, AblateError):
        return str(cause)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; quote what holds = , [ ] {{ }} ( ) or spaces: \"key='value'\""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: needs a value; set {error.full_key}=..."
    text = str(error)
    group = re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\n((?:\t.*\n)+)", text)
    if group:
        name, folder, options = group.groups()
        return f"{folder}: no option '{name.split('/')[-1]}'{did_you_mean(name.split('/')[-1], options.split())}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return _unknown_key(unknown.group(1), cause, text)
    return re.sub(r"\s+", " ", text).strip()


def _unknown_key(key: str, cause: BaseException | None, text: str) -> str:
    if "/" not in key and isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        more = " (more of Lightning's: with a + before)" if key.startswith("trainer.") else ""
        return f"{key}: no such key{did_you_mean(cause.key, map(str, cause.parent_node))}{more}"
    if "/" in key or "No match in the defaults list" in text:
        groups = [os.path.relpath(root, config_dir()) for root, _, _ in os.walk(config_dir())][1:]
        nearest = difflib.get_close_matches(key, groups, n=1, cutoff=0.5)
        return f"{key}: no such config group" + (f"; did you mean '{nearest[0]}'?" if nearest else "")
    return re.sub(r"\s+", " ", text).strip()
