"""Errors that a user can correct: one clear line that names the key and the remedy."""

import difflib
import warnings
from collections.abc import Iterable

LED_BY = "ABLATE_LED_BY"  # an environment variable, set in ranks > 0: PID:RUN_FOLDER of rank 0


class AblateError(Exception):
    """A mistake in a configuration, a corpus or a run folder.

    The entry points print its message as one line and exit with status 1.
    """


class AblateWarning(UserWarning):
    """Something that works but may not be what the user wants. The entry points print it as one line."""


def warn(text: str) -> None:
    warnings.warn(AblateWarning(text), stacklevel=3)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its name if it has no message."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def did_you_mean(wrong: object, valid: Iterable[str]) -> str:
    """The end of a message: the choice nearest to `wrong`, and all choices: `; did you mean 'eps'? valid: ...`."""
    choices = sorted(valid)
    if not choices:
        return "; it has no options"
    nearest = difflib.get_close_matches(str(wrong), choices, n=1, cutoff=0.5)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ";"
    return f"{hint} valid: {', '.join(choices)}"
