"""Speed of greedy generation: ways to generate over a grid of places, turn by turn, beside the machine's limit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ablate.benchmark.limits import Limits, Work
from ablate.benchmark.rounds import name_of_round, spread, take_turns
from ablate.generation.speed import time_greedy
from ablate.model.decoder import Decoder

CACHED, UNCACHED = "cached", "uncached"
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """One place of the grid: `batch` prompts of `prompt_tokens` each, continued by `new_tokens`."""

    batch: int
    prompt_tokens: int
    new_tokens: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.prompt_tokens} + {self.new_tokens} tokens"


@dataclass(frozen=True)
class Way:
    """One way to generate. `seconds`: prompts of ids and new tokens -> seconds to the first new token, to the last."""

    name: str
    seconds: Callable[[list[list[int]], int], tuple[float, float]]


@dataclass(frozen=True)
class Sample:
    """One greedy generation by the clock; `peak`: bytes on a GPU above what was there before."""

    first: float
    whole: float
    peak: int | None


def ours(model: Decoder, compile: bool, uncached: bool) -> list[Way]:
    """With the cache, and without it. Passes without a cache, each of another length, are never compiled."""
    ways = [Way(CACHED, partial(time_greedy, model, use_cache=True, compile=compile))]
    return [*ways, Way(UNCACHED, partial(time_greedy, model, use_cache=False))] if uncached else ways


def measure(
    ways: list[Way],
    places: list[Place],
    rounds: int,
    prompts: Callable[[Place], list[list[int]]],
    device: torch.device,
    say: Callable[[str], None],
) -> list[Row]:
    """A row for every way at every place: medians over rounds, with their spread. Ways take turns at one place."""
    points = [(place, way) for place in places for way in ways]
    contestants = [partial(_sample, way, prompts(place), place.new_tokens, device) for place, way in points]

    def announce(number: int, turn: int) -> None:
        place, way = points[turn]
        say(f"{name_of_round(number, rounds)}: {way.name}, {place}")

    samples = take_turns(contestants, rounds, announce)
    return [_row(way, place, of_one) for (place, way), of_one in zip(points, samples, strict=True)]


def random_prompts(place: Place, vocab_size: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (place.batch, place.prompt_tokens), generator=generator).tolist()


def _sample(way: Way, prompts: list[list[int]], new_tokens: int, device: torch.device) -> Sample:
    if device.type != "cuda":
        return Sample(*way.seconds(prompts, new_tokens), None)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    first, whole = way.seconds(prompts, new_tokens)
    return Sample(first, whole, torch.cuda.max_memory_allocated(device) - before)


def _row(way: Way, place: Place, samples: list[Sample]) -> Row:
    steps = place.new_tokens - 1
    peaks = [s.peak for s in samples if s.peak is not None]
    return {
        "way": way.name,
        "batch": place.batch,
        "prompt_tokens": place.prompt_tokens,
        "new_tokens": place.new_tokens,
        "first_token_s": spread([s.first for s in samples]),
        "token_s": spread([(s.whole - s.first) / steps for s in samples]) if steps else None,
        "tokens_per_s": spread([place.batch * place.new_tokens / s.whole for s in samples]),
        "peak_memory_bytes": max(peaks, default=None),
    }


def add_limits(rows: list[Row], work: Work, limits: Limits) -> None:
    """Adds what our ways keep in the cache, the least time of their steps, and how near they come to it."""
    for row in rows:
        batch, prompt, new = (row[key] for key in ("batch", "prompt_tokens", "new_tokens"))
        row |= {"cache_bytes": None, "limit_token_s": None, "fraction_of_limit": None}
        if row["way"] not in (CACHED, UNCACHED):
            continue
        cached = row["way"] == CACHED
        # The last new token is never fed back.
        row["cache_bytes"] = batch * work.model.cache_bytes(prompt + new - 1) if cached else 0
        row["limit_token_s"] = work.limit(limits, batch, prompt, new, cached)
        if row["limit_token_s"] is not None:
            row["fraction_of_limit"] = row["limit_token_s"] / row["token_s"]["median"]


def add_ratios(rows: list[Row]) -> None:
    """Adds, to rows with the cache, how many times the rate without it and of the fastest peer at the same place."""
    for row in rows:
        others = {
            other["way"]: other["tokens_per_s"]["median"]
            for other in rows
            if all(other[key] == row[key] for key in ("batch", "prompt_tokens", "new_tokens"))
        }
        rate, uncached = others.pop(row["way"]), others.pop(UNCACHED, None)
        fastest = max((other for way, other in others.items() if way != CACHED), default=None)
        cached = row["way"] == CACHED
        row["speedup"] = rate / uncached if cached and uncached else None
        row["times_peer"] = rate / fastest if cached and fastest else None
