"""Speed of greedy generation: ways to generate over a grid of places, turn by turn, beside the machine's limit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ablate.benchmark.generation.limits import Limits, Work
from ablate.benchmark.rounds import name_of_round, spread, take_turns
from ablate.generation.speed import time_greedy
from ablate.generation.step import forget
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


Seconds = tuple[float, float]


class _Point:
    """A way at a place; a call times it once. On a GPU the first call, which does not count, looks at memory.

    peak: bytes on the GPU above what was there before, which is the weights.
    """

    def __init__(self, place: Place, way: Way, prompts: list[list[int]], device: torch.device):
        self.place, self.way, self._prompts = place, way, prompts
        self._device = device
        self.peak: int | None = None

    def __call__(self) -> Seconds:
        if self._device.type == "cuda" and self.peak is None:
            return self._watched()
        return self.way.seconds(self._prompts, self.place.new_tokens)

    def _watched(self) -> Seconds:
        forget()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        seconds = self.way.seconds(self._prompts, self.place.new_tokens)
        self.peak = torch.cuda.max_memory_allocated(self._device) - before
        return seconds


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
    rows = []
    for place in places:
        points = [_Point(place, way, prompts(place), device) for way in ways]

        def announce(number: int, turn: int, points=points) -> None:
            say(f"{name_of_round(number, rounds)}: {points[turn].way.name}, {points[turn].place}")

        samples = take_turns(points, rounds, announce)
        rows += [_row(point, seconds) for point, seconds in zip(points, samples, strict=True)]
    return rows


def random_prompts(place: Place, vocab_size: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (place.batch, place.prompt_tokens), generator=generator).tolist()


def _row(point: _Point, samples: list[Seconds]) -> Row:
    place = point.place
    steps = place.new_tokens - 1
    return {
        "way": point.way.name,
        "batch": place.batch,
        "prompt_tokens": place.prompt_tokens,
        "new_tokens": place.new_tokens,
        "first_token_s": spread([first for first, _ in samples]),
        "token_s": spread([(whole - first) / steps for first, whole in samples]) if steps else None,
        "tokens_per_s": spread([place.batch * place.new_tokens / whole for _, whole in samples]),
        "peak_memory_bytes": point.peak,
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
