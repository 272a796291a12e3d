"""The results of a benchmark of generation, and their file `generation.json`."""

import json
from collections import Counter
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ablate import check
from ablate.accounting import Budget
from ablate.benchmark.generation.cache_memory import CacheCurve
from ablate.benchmark.generation.limits import Limits
from ablate.benchmark.generation.measure import CACHED, UNCACHED, Point, Workload
from ablate.errors import AblateError, first_line, warn
from ablate.files import natural_order, write_json
from ablate.registry import in_words

FILE = "generation.json"
FORMAT = 1  # raise it when older files can no longer be read


@dataclass(frozen=True)
class Result:
    """What was measured for one model, and under which conditions. `generation.json` has the same keys.

    label: its name in tables and plots. weight_bytes: bytes of the weights that one token reads.
    kernels, products: those that compute attention and the linear maps in decoding steps.

    Raises:
        ValueError: a way has two points at one workload, or a point with a speed-up has none without the cache.
    """

    label: str
    model: dict[str, Any]
    budget: Budget
    weight_bytes: int
    device: str
    gpu: str | None
    threads: int
    precision: str
    compile: bool
    rounds: int
    limits: Limits
    points: list[Point]
    cache_memory: list[CacheCurve]
    command: str
    versions: dict[str, Any]
    machine: dict[str, Any]
    git: dict[str, Any] | None
    kernels: list[str] = field(default_factory=list)
    products: list[str] = field(default_factory=list)

    def __post_init__(self):
        if len({(point.way, point.workload) for point in self.points}) < len(self.points):
            raise ValueError("two points of one way at one workload")
        if any(point.speedup and UNCACHED not in self.at(point.workload) for point in self.cached):
            raise ValueError("a speed-up without an uncached point")

    def at(self, workload: Workload) -> dict[str, Point]:
        """The points at a workload, by their way."""
        return {point.way: point for point in self.points if point.workload == workload}

    @property
    def cached(self) -> list[Point]:
        return [point for point in self.points if point.way == CACHED]


def write_result(folder: Path, result: Result) -> Path:
    path = folder / FILE
    write_json(path, {"task": "generation", "format": FORMAT, **asdict(result)})
    return path


def read_results(folder: Path) -> list[Result]:
    """The results in `folder` and in the folders directly below it, in the natural order of their names.

    A file that is damaged or holds something else is left out, with a warning. If several results have the same label,
    the name of the folder is put before it.

    Raises:
        AblateError: there is no result.
    """
    files = [folder / FILE, *sorted(folder.glob(f"*/{FILE}"), key=lambda file: natural_order(file.parent.name))]
    results = []
    for file in filter(Path.is_file, files):
        try:
            results.append((file.resolve().parent.name, _result(json.loads(file.read_text(encoding="utf-8")))))
        except (AblateError, OSError, ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
            warn(
                f"{file}: not a complete result of a generation benchmark ({reason}): left out of the page; "
                "remove it, or measure again"
            )
    if not results:
        raise AblateError(f"{folder}: no {FILE} of a generation benchmark in it; measure one with task=generation")
    labels = Counter(result.label for _, result in results)
    return [
        replace(result, label=f"{name}: {result.label}") if labels[result.label] > 1 else result
        for name, result in results
    ]


def _result(data: Any) -> Result:
    if data["task"] != "generation":
        raise ValueError(f"its task is {data['task']}")
    if (number := data.get("format", 1)) != FORMAT:  # the first files had no number
        raise ValueError(f"its format is {number}, and this version of ablate reads {FORMAT}")
    return _read(Result, data, "")


def _read(kind: Any, value: Any, key: str) -> Any:
    """`value`, read from JSON at `key`, as the type `kind`.

    An object becomes a dataclass by the types of its fields: unknown keys are ignored, and fields with a default may be
    missing. Numbers must be finite and at least 0.

    Raises:
        AblateError, KeyError, TypeError, ValueError: it is something else.
    """
    inner = get_args(kind)
    if is_dataclass(kind):
        types = get_type_hints(kind)
        needed = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
        given = [one.name for one in fields(kind) if one.name in value or one.name in needed]
        return kind(**{name: _read(types[name], value[name], f"{key}.{name}".lstrip(".")) for name in given})
    if isinstance(kind, UnionType):  # X | None
        return None if value is None else _read(inner[0], value, key)
    if get_origin(kind) is list:
        return [_read(inner[0], item, key) for item in value]
    if kind is int:
        return check.whole(key, value, 0)
    if kind is float:
        return check.number(key, value, least=0)
    if not isinstance(value, get_origin(kind) or kind):
        raise check.wrong(key, value, in_words(kind))
    return value
