"""Numbers with their units, as the pages write them."""


def number(value: float) -> str:
    """Three digits, or all before the point: 1,234 and 12.3."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes: 16384 -> 16.4 kB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{number(count)} B"


def duration(seconds: float) -> str:
    """200 -> 3.33 min."""
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{number(seconds / scale)} {unit}"
    return f"{number(seconds)} s"
