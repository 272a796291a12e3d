"""Numbers as text: the formats of every table, page, plot and message, and the one rule for rounding."""

import math
from collections import Counter
from collections.abc import Iterable

MINUS = "\u2212"


# --- one number --------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits, or all digits before the point: 12.3 and 1,234."""
    return _minus(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}")


def short(value: float) -> str:
    """1234567 -> 1.23M."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:g}"


def size(count: float) -> str:
    """Bytes: 16384 -> 16.4 kB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{number(count)} B"


def memory(count: float) -> str:
    """Bytes that a machine has or needs, in binary units: 25769803776 -> 24 GiB."""
    return f"{count / 2**30:,.0f} GiB"


def clock(seconds: float) -> str:
    """92 -> 1:32."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def duration(seconds: float) -> str:
    """200 -> 3.33 min."""
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{number(seconds / scale)} {unit}"
    return f"{number(seconds)} s"


def level(value: float) -> str:
    """A metric's value: 3.4172, or 24,044."""
    return _minus(f"{value:.4f}") if abs(value) < 100 else number(value)


def p_value(p: float | None) -> str:
    """0.012, 0.34, < 0.0001; empty for None."""
    if p is None:
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def percent(share: float, places: int = 1, sign: bool = False) -> str:
    """0.22 -> 22.0%. sign: puts a plus before positive values."""
    return _minus(f"{share:{'+' if sign and share > 0 else ''}.{places}%}")


def setting(value: float) -> str:
    """A value that somebody chose, in up to six digits: 0.003, 1e-05."""
    return f"{value:g}"


def _minus(text: str) -> str:
    """Replaces a hyphen before a number by a minus sign."""
    return MINUS + text[1:] if text.startswith("-") else text


# --- an estimate and its interval --------------------------------------------------------------------


def decimals(error: float) -> int:
    """The number of decimals that show one digit of `error`, or two if the first is below 3.

    decimals(0.006) is 3, decimals(0.012) is 3, decimals(0.05) is 2.
    """
    return min(max(-math.floor(math.log10(error / 3)), 0), 12) if error > 0 else 0


def rounded(value: float, error: float, sign: bool = False) -> str:
    """`value` to the decimals that its error allows: 0.0213 is 0.021 with an error of 0.006.

    sign: puts a plus before positive values.
    """
    places = decimals(error)
    shown = round(value, places) + 0.0  # + 0.0: no -0
    return _minus(f"{shown:{'+' if sign and shown > 0 else ''},.{places}f}")


def estimate(
    value: float | None, interval: tuple[float, float] | list[float] | None, sign: bool = True
) -> tuple[str, str]:
    """An estimate and its interval, `+0.277` and `+0.270 to +0.284`, rounded by the interval's half width.

    None becomes an empty string. Without an interval, or with one of width 0, the value is rounded by its own size.
    """
    if value is None:
        return "", ""
    error = scale(value, interval)
    ends = [rounded(end, error, sign) for end in interval or ()]
    return rounded(value, error, sign), " to ".join(ends)


def scale(value: float, interval: tuple[float, float] | list[float] | None) -> float:
    """The size by which an estimate is rounded: the half width of its interval, or its own size without a width."""
    return (interval[1] - interval[0]) / 2 if interval and interval[1] > interval[0] else abs(value)


# --- several -------------------------------------------------------------------------------------------


def counted(count: int, noun: str, plural: str = "") -> str:
    """1 seed, 3 seeds."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(values: Iterable[object]) -> str:
    """a, b, c; separated by semicolons if one of them has a comma."""
    texts = [str(value) for value in values]
    return ("; " if any("," in text for text in texts) else ", ").join(texts)


def tally(values: Iterable[str]) -> str:
    """The count of each value, the most frequent first: 2 finished, 1 failed."""
    return ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())


def joined(texts: list[str]) -> str:
    """a, b and c."""
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)
