"""What generation benchmarks measured, read back from their `generation.json`: one result a file."""

import json
import math
import re
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

from ablate.errors import AblateError, AblateWarning

FILE = "generation.json"
TYPES = {
    "label": str,
    "model": dict,
    "budget": dict,
    "weight_bytes": int | float,
    "gpu": str | None,
    "threads": int,
    "precision": str,
    "compile": bool,
    "rounds": int,
    "limits": dict,
    "command": str,
    "versions": dict,
    "machine": dict,
    "git": dict | None,
}
LIMITS = ("bandwidth_bytes_per_s", "flops_per_s")


class Place(NamedTuple):
    """Where a way was measured: rows at once, tokens of each prompt, new tokens of each row."""

    batch: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Measured:
    """Over the rounds."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Point:
    """One way of generating at one place. None: not measured, or it does not apply."""

    way: str
    place: Place
    first_token_s: Measured
    token_s: Measured | None
    tokens_per_s: Measured
    peak_memory_bytes: float | None
    cache_bytes: float | None
    limit_token_s: float | None
    fraction_of_limit: float | None
    speedup: float | None
    times_peer: float | None


@dataclass(frozen=True)
class Memory:
    """Cache bytes over contexts for one choice of attention and pattern; `this`: the model's own."""

    name: str
    this: bool
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Result:
    """One model: what its benchmark measured, and under what."""

    label: str
    folder: str
    points: list[Point]
    memory: list[Memory]
    data: dict[str, Any]  # the whole file

    def at(self, place: Place) -> dict[str, Point]:
        """Way -> point."""
        return {point.way: point for point in self.points if point.place == place}

    @property
    def cached(self) -> list[Point]:
        return [point for point in self.points if point.way == "cached"]


def read_results(folder: Path) -> list[Result]:
    """What every generation.json in `folder` and in the folders in it holds, in the order of their names.

    A file that is none of a generation benchmark's is left out, with a warning. Results of one label get the name of
    their folder beside it.

    Raises:
        AblateError: no result at all.
    """
    files = [folder / FILE, *sorted(folder.glob(f"*/{FILE}"), key=lambda file: _in_order(file.parent.name))]
    results = []
    for file in files:
        if not file.is_file():
            continue
        try:
            results.append(_result(json.loads(file.read_text(encoding="utf-8")), file.resolve().parent.name))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            warnings.warn(
                f"{file}: not a whole generation benchmark ({reason}): left out of the page; "
                "remove it, or measure again",
                AblateWarning,
                stacklevel=2,
            )
    if not results:
        raise AblateError(f"{folder}: no {FILE} of a generation benchmark in it; measure one with task=generation")
    labels = Counter(result.label for result in results)
    return [_with_folder(result) if labels[result.label] > 1 else result for result in results]


def _with_folder(result: Result) -> Result:
    return replace(result, label=f"{result.folder}: {result.label}")


def _in_order(name: str) -> list[str | int]:
    """2_b before 10_a."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _result(data: Any, folder: str) -> Result:
    if _typed(data, dict).get("task") != "generation":
        raise ValueError("its task is not generation")
    for key, kind in TYPES.items():
        _typed(data[key], kind)
    budget, limits = data["budget"], data["limits"]
    for number in (budget["kv_bytes_per_token"], *budget.values(), *(limits[key] for key in LIMITS)):
        _number(number)
    memory = [_memory(line) for line in data["cache_memory"]]
    result = Result(data["label"], folder, [_point(item) for item in data["points"]], memory, data)
    if len({(point.way, point.place) for point in result.points}) < len(result.points):
        raise ValueError("two points of one way at one place")
    if any(point.speedup and "uncached" not in result.at(point.place) for point in result.cached):
        raise ValueError("a speedup without an uncached point")
    return result


def _point(item: dict[str, Any]) -> Point:
    optional = ("peak_memory_bytes", "cache_bytes", "limit_token_s", "fraction_of_limit", "speedup", "times_peer")
    place = Place(*(_typed(item[key], int) for key in Place._fields))
    if min(place) < 1:
        raise ValueError(f"{place}")
    return Point(
        _typed(item["way"], str),
        place,
        _measured(item["first_token_s"]),
        None if item["token_s"] is None else _measured(item["token_s"]),
        _measured(item["tokens_per_s"]),
        *(None if item[key] is None else _number(item[key]) for key in optional),
    )


def _memory(line: dict[str, Any]) -> Memory:
    points = [(_number(context), _number(held)) for context, held in line["points"]]
    if not all(context and held for context, held in points):
        raise ValueError("a cache of nothing")
    return Memory(_typed(line["name"], str), _typed(line["this"], bool), points)


def _measured(item: dict[str, Any]) -> Measured:
    median, low, high = (_number(item[key]) for key in ("median", "min", "max"))
    if not 0 < low <= median <= high:
        raise ValueError(f"median {median}, min {low}, max {high}")
    return Measured(median, low, high)


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} where a number should be")
    return value


def _typed(value: Any, kind: type | UnionType) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} where {getattr(kind, '__name__', kind)} should be")
    return value
