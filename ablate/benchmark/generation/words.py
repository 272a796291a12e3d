"""The results of a benchmark of generation as sentences and as table cells."""

from collections import Counter
from collections.abc import Callable, Iterable

from ablate.benchmark.generation.cache_memory import CacheCurve
from ablate.benchmark.generation.measure import Point, Workload
from ablate.benchmark.generation.results import Result
from ablate.benchmark.rounds import Measured
from ablate.page.table import Cell
from ablate.words import counted, joined, number, size

NAMED = 4  # a sentence names up to this many models; of more, only the two extremes


def spread(measured: Measured) -> str:
    return f"{number(measured.min)} – {number(measured.max)}"


def figure(name: str, scale: float = 1.0) -> Callable[[Point], Cell]:
    """Makes a table cell from a point: the figure `name` times `scale`; empty for None."""

    def cell(point: Point) -> Cell:
        value = getattr(point, name)
        if isinstance(value, Measured):
            value = value.scaled(scale)
            return Cell(number(value.median), spread(value))
        return Cell() if value is None else Cell(number(value * scale))

    return cell


def described(workload: Workload, leave_out: str | None = None) -> str:
    """A workload in words, without its field `leave_out`."""
    parts = {
        "batch": f"batch {workload.batch:,}",
        "prompt_tokens": f"prompt of {counted(workload.prompt_tokens, 'token')}",
        "new_tokens": f"{counted(workload.new_tokens, 'token')} new",
    }
    return ", ".join(text for field, text in parts.items() if field != leave_out)


def headline(results: Iterable[Result], key: str = "tokens_per_s") -> tuple[Workload, list[tuple[Result, Point]]]:
    """The workload for a sentence about the figure `key`, and the cached point of each result there.

    It is the workload at which most results have the figure; in a tie the one with the most new tokens, then the
    smallest batch, then the shortest prompt. The list is empty if no result has the figure.
    """
    having = [(result, point) for result in results for point in result.cached if getattr(point, key)]
    counts = Counter(point.workload for _, point in having)
    best = max(counts, key=lambda w: (counts[w], w.new_tokens, -w.batch, -w.prompt_tokens), default=Workload(1, 1, 1))
    return best, [(result, point) for result, point in having if point.workload == best]


def sentences(results: list[Result]) -> list[str]:
    """The sentences at the top of the page. They mention only what was measured."""
    written = [_speedup(results), _fastest(results), _cache(results), _peers(results), _limit(results)]
    return [sentence for sentence in written if sentence]


def _speedup(results: list[Result]) -> str | None:
    workload, points = headline(results, "speedup")
    if not points:
        return None
    times = _each(results, [(result, point.speedup) for result, point in points])
    batch, prompt = f"batch {workload.batch:,}", counted(workload.prompt_tokens, "token")
    new = counted(workload.new_tokens, "token")
    if len(results) > 1:
        return (
            f"With the KV cache, {new} are generated {times} times as fast as without it, "
            f"at {batch} after a prompt of {prompt}."
        )
    rate = points[0][1].tokens_per_s.median
    return (
        f"With the KV cache, {results[0].label} generates {new} {times} times as fast as without it "
        f"({number(rate)} against {number(rate / points[0][1].speedup)} tokens/s at {batch}, "
        f"after a prompt of {prompt})."
    )


def _fastest(results: list[Result]) -> str | None:
    workload, points = headline(results)
    if len(points) < 2:
        return None
    ordered = sorted(((point.tokens_per_s, result.label) for result, point in points), key=lambda pair: pair[0].median)
    (low, slowest), (high, fastest) = ordered[0], ordered[-1]
    if high.min <= low.max:
        return (
            f"At batch {workload.batch:,} no model is clearly the fastest: from {number(low.median)} ({slowest}) "
            f"to {number(high.median)} ({fastest}) tokens/s, and their rounds overlap."
        )
    return (
        f"At batch {workload.batch:,}, {fastest} is the fastest: {number(high.median)} tokens/s, "
        f"{number(high.median / low.median)} times the {number(low.median)} of {slowest}."
    )


def _cache(results: list[Result]) -> str:
    costs = _each(results, [(result, result.budget.kv_bytes_per_token) for result in results], size)
    sentence = f"One more token costs {costs} of cache"
    if any(curve.this and _forgets(curve) for result in results for curve in result.cache_memory):
        sentence += " while nothing is forgotten"
    own = next((curve for curve in results[0].cache_memory if curve.this), None)
    if len(results) > 1 or not own or not own.points:
        return f"{sentence}."
    context, nbytes = own.points[-1]
    of_mha = next((dict(curve.points).get(context) for curve in results[0].cache_memory if curve.name == "mha"), None)
    beside = f", where mha would take {size(of_mha)}" if of_mha and own.name != "mha" else ""
    return f"{sentence}; {counted(context, 'token')} take {size(nbytes)}{beside}."


def _forgets(curve: CacheCurve) -> bool:
    """Whether a long text takes fewer bytes per token than a short one."""
    per_token = [nbytes / context for context, nbytes in curve.points]
    return bool(per_token) and per_token[-1] < per_token[0]


def _peers(results: list[Result]) -> str | None:
    workload, points = headline(results, "times_peer")
    if not points:
        return None
    times = _each(results, [(result, point.times_peer) for result, point in points])
    if len(results) > 1:
        return f"The tokens/s are {times} times those of transformers' fastest way, at batch {workload.batch:,}."
    rate = points[0][1].tokens_per_s.median
    return (
        f"Its tokens/s are {times} times those of transformers' fastest way "
        f"({number(rate)} against {number(rate / points[0][1].times_peer)} at batch {workload.batch:,})."
    )


def _limit(results: list[Result]) -> str | None:
    workload, points = headline(results, "fraction_of_limit")
    if not points:
        return None
    ratios = [(result, 1 / point.fraction_of_limit) for result, point in points]
    took = f"{number(points[0][1].token_s.median * 1e3)} ms, " if len(results) == 1 else ""
    sentence = (
        f"A decoding step at batch {workload.batch:,} takes {took}{_each(results, ratios)} times "
        "the least that the measured memory bandwidth and FLOP rate allow"
    )
    below = "; below 1, it reads from faster memory, such as a processor's caches"
    return f"{sentence}{below if min(ratio for _, ratio in ratios) < 1 else ''}."


def _each(results: list[Result], values: list[tuple[Result, float]], text: Callable[[float], str] = number) -> str:
    """Values with their models: `12.3 (mha), 12.9 (gqa) and 13.1 (mqa)`.

    A single result needs no name: `12.3`. More than `NAMED` values become `from 12.3 (mha) to 13.1 (mqa)`.
    """
    if len(results) == 1:
        return text(values[0][1])
    many = len(values) > NAMED
    named = [
        f"{text(value)} ({result.label})"
        for result, value in (sorted(values, key=lambda pair: pair[1]) if many else values)
    ]
    return f"from {named[0]} to {named[-1]}" if many else joined(named)
