"""Checks of a single value, all with one wording: `KEY=VALUE: expected WHAT`.

Each returns the value if it passes and raises AblateError if it does not. `null=True` lets None pass, too; `hint` adds
what the user should know about the value.
"""

import math
from collections.abc import Iterable
from typing import Any

from ablate.errors import AblateError, did_you_mean


def whole(
    key: str, value: Any, least: int | None = None, most: int | None = None, *, null: bool = False, hint: str = ""
) -> Any:
    """An int (not a bool) from `least` to `most`."""
    fits = isinstance(value, int) and not isinstance(value, bool) and _within(value, least, most)
    if not fits and not (null and value is None):
        raise wrong(key, value, f"a whole number{_range(least=least, most=most)}", null, hint)
    return value


def number(
    key: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    null: bool = False,
    hint: str = "",
) -> Any:
    """A finite int or float (not a bool) within the bounds; `above` and `below` exclude the bound itself."""
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and _within(value, least, most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not fits and not (null and value is None):
        bounds = _range(above=above, least=least, below=below, most=most)
        raise wrong(key, value, f"a number{bounds}", null, hint)
    return value


def switch(key: str, value: Any) -> Any:
    """True or False."""
    if not isinstance(value, bool):
        raise wrong(key, value, "true or false")
    return value


def choice(key: str, value: Any, valid: Iterable[Any], *, null: bool = False) -> Any:
    """One of `valid`; the message names the nearest."""
    valid = list(valid)
    if value not in valid and not (null and value is None):
        raise no_choice(key, value, [str(v) for v in valid] + ["null"] * null)
    return value


def no_choice(key: str, value: Any, valid: Iterable[str]) -> AblateError:
    """The error of a value that is none of `valid`."""
    return AblateError(f"{key}={shown(value)}: no such choice{did_you_mean(value, valid)}")


def text(key: str, value: Any, *, null: bool = False, hint: str = "") -> Any:
    """A non-empty str."""
    if value == "":
        raise AblateError(f"{key}: it is empty; set {key}=...")
    if not isinstance(value, str) and not (null and value is None):
        quoted = hint or (f"""quote it: {key}="'{value}'\"""" if isinstance(value, int | float) else "")
        raise wrong(key, value, "text", null, quoted)
    return value


def seed(key: str, value: Any) -> Any:
    """A whole number that every random generator accepts."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise wrong(key, value, "a whole number from 0 to 2^63 - 1")
    return value


def wrong(key: str, value: Any, what: str, null: bool = False, hint: str = "") -> AblateError:
    """The error for a value that is not `what`."""
    hint = hint and f" ({hint})"
    return AblateError(f"{key}={shown(value)}: expected {what}{', or null' * null}{hint}")


def shown(value: Any) -> str:
    """A value as a configuration writes it: null, true, false; a str in quotes."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _range(
    *, above: float | None = None, least: float | None = None, below: float | None = None, most: float | None = None
) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    named = {"above": above, "at least": least, "below": below, "at most": most}
    bounds = [f"{words} {bound:g}" for words, bound in named.items() if bound is not None]
    return "" if not bounds else ", " + ", ".join(bounds) if least is not None else " " + ", ".join(bounds)
