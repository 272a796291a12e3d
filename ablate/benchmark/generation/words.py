"""What generation benchmarks found, in sentences and in numbers with their units."""

from collections import Counter
from collections.abc import Callable, Iterable

from ablate.benchmark.generation.results import Measured, Memory, Place, Point, Result
from ablate.words import number, size

NAMED = 4  # models: of more, a sentence names the two ends only


def spread(measured: Measured, scale: float = 1.0) -> str:
    return f"{number(measured.min * scale)} – {number(measured.max * scale)}"


def tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def where(place: Place, leave_out: str | None = None) -> str:
    """A place in words, all its fields but `leave_out`."""
    parts = {
        "batch": f"batch {place.batch:,}",
        "prompt_tokens": f"prompt of {tokens(place.prompt_tokens)}",
        "new_tokens": f"{tokens(place.new_tokens)} new",
    }
    return ", ".join(text for field, text in parts.items() if field != leave_out)


def headline(results: Iterable[Result], key: str = "tokens_per_s") -> tuple[Place | None, list[tuple[Result, Point]]]:
    """The place that stands for all, and the cached point of each result there.

    It is where most models have the figure `key`; of such places that of the most new tokens, the smallest batch,
    the shortest prompt. None: there is none.
    """
    found = [(result, point) for result in results for point in result.cached if getattr(point, key)]
    counts = Counter(point.place for _, point in found)
    best = max(counts, key=lambda p: (counts[p], p.new_tokens, -p.batch, -p.prompt_tokens), default=None)
    return best, [(result, point) for result, point in found if point.place == best]


def sentences(results: list[Result]) -> list[str]:
    """What the page says first. Of what was not measured it says nothing."""
    said = [_speedup(results), _fastest(results), _cache(results), _peers(results), _limit(results)]
    return [sentence for sentence in said if sentence]


def _speedup(results: list[Result]) -> str | None:
    place, found = headline(results, "speedup")
    if not found:
        return None
    times = _each(results, [(result, point.speedup) for result, point in found])
    batch, new, prompt = f"batch {place.batch:,}", tokens(place.new_tokens), tokens(place.prompt_tokens)
    if len(results) > 1:
        return (
            f"With the KV cache, {new} are generated {times} times as fast as without it, "
            f"at {batch} after {prompt} of prompt."
        )
    rate = found[0][1].tokens_per_s.median
    return (
        f"With the KV cache, {results[0].label} generates {new} {times} times as fast as without it "
        f"({number(rate)} against {number(rate / found[0][1].speedup)} tokens/s at {batch}, after {prompt} of prompt)."
    )


def _fastest(results: list[Result]) -> str | None:
    place, found = headline(results)
    if len(found) < 2:
        return None
    ordered = sorted(((point.tokens_per_s, result.label) for result, point in found), key=lambda pair: pair[0].median)
    (low, slowest), (high, fastest) = ordered[0], ordered[-1]
    if high.min <= low.max:
        return (
            f"At batch {place.batch:,} no model is clearly the fastest: from {number(low.median)} ({slowest}) "
            f"to {number(high.median)} ({fastest}) tokens/s, and their rounds overlap."
        )
    return (
        f"At batch {place.batch:,}, {fastest} is the fastest: {number(high.median)} tokens/s, "
        f"{number(high.median / low.median)} times the {number(low.median)} of {slowest}."
    )


def _cache(results: list[Result]) -> str:
    costs = _each(results, [(result, result.data["budget"]["kv_bytes_per_token"]) for result in results], size)
    sentence = f"One more token costs {costs} of cache"
    if any(line.this and _forgets(line) for result in results for line in result.memory):
        sentence += " while nothing is forgotten"
    own = next((line for line in results[0].memory if line.this), None)
    if len(results) > 1 or not own or not own.points:
        return f"{sentence}."
    context, held = own.points[-1]
    most = next((dict(line.points).get(context) for line in results[0].memory if line.name == "mha"), None)
    beside = f", where mha would take {size(most)}" if most and own.name != "mha" else ""
    return f"{sentence}; {tokens(context)} take {size(held)}{beside}."


def _forgets(line: Memory) -> bool:
    """Whether it holds less for each token of a long text than of a short one."""
    per_token = [held / context for context, held in line.points]
    return bool(per_token) and per_token[-1] < per_token[0]


def _peers(results: list[Result]) -> str | None:
    place, found = headline(results, "times_peer")
    if not found:
        return None
    times = _each(results, [(result, point.times_peer) for result, point in found])
    sentence = f"Its tokens/s are {times} times those of transformers' fastest way"
    if len(results) > 1:
        return f"{sentence.replace('Its', 'The', 1)}, at batch {place.batch:,}."
    rate = found[0][1].tokens_per_s.median
    peer = number(rate / found[0][1].times_peer)
    return f"{sentence} ({number(rate)} against {peer} at batch {place.batch:,})."


def _limit(results: list[Result]) -> str | None:
    place, found = headline(results, "fraction_of_limit")
    if not found:
        return None
    ratios = [(result, 1 / point.fraction_of_limit) for result, point in found]
    took = f"{number(found[0][1].token_s.median * 1e3)} ms, " if len(results) == 1 else ""
    sentence = (
        f"A decoding step at batch {place.batch:,} takes {took}{_each(results, ratios)} times "
        "the least that the measured memory bandwidth and FLOP rate allow"
    )
    below = "; below 1, it reads from what is faster than that memory, such as a processor's caches"
    return f"{sentence}{below if min(ratio for _, ratio in ratios) < 1 else ''}."


def _each(results: list[Result], values: list[tuple[Result, float]], text: Callable[[float], str] = number) -> str:
    """Values of some of the results: `12.3` where there is but one result; `12.3 (mha), 12.9 (gqa) and 13.1 (mqa)`
    of several; `from 12.3 (mha) to 13.1 (mqa)` of many.
    """
    if len(results) == 1:
        return text(values[0][1])
    values = sorted(values, key=lambda pair: pair[1]) if len(values) > NAMED else values
    named = [f"{text(value)} ({result.label})" for result, value in values]
    if len(named) > NAMED:
        return f"from {named[0]} to {named[-1]}"
    return f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]
