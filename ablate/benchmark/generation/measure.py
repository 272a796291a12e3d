"""The speed of greedy generation: several ways to generate, timed in turn at each workload of a grid."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import partial

import torch

from ablate.benchmark.generation.limits import Limits, Work
from ablate.benchmark.rounds import Measured, name_of_round, over_rounds, take_turns
from ablate.generation.speed import time_greedy
from ablate.generation.step import forget
from ablate.model.decoder import Decoder

CACHED, UNCACHED = "cached", "uncached"
Seconds = tuple[float, float]  # to the first new token, and to the last


@dataclass(frozen=True, order=True)
class Workload:
    """What is generated: `batch` prompts of `prompt_tokens` each, continued by `new_tokens` each.

    Raises:
        ValueError: one of them is below 1.
    """

    batch: int
    prompt_tokens: int
    new_tokens: int

    def __post_init__(self):
        if min(astuple(self)) < 1:
            raise ValueError(str(self))

    @property
    def length(self) -> int:
        """Tokens of one row at the end."""
        return self.prompt_tokens + self.new_tokens

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.prompt_tokens} + {self.new_tokens} tokens"


@dataclass(frozen=True)
class Way:
    """One way to generate. `time`: generates once, from prompts of token ids and the number of new tokens."""

    name: str
    time: Callable[[list[list[int]], int], Seconds]


@dataclass(frozen=True)
class Point:
    """One way at one workload. None: not measured, or not applicable.

    token_s: a step after the first token. tokens_per_s: new tokens of all rows divided by the whole time.
    peak_memory_bytes: on a GPU, beyond what was allocated before (the weights).
    cache_bytes: keys and values of all rows at the end. limit_token_s: the least time of a step on this machine.
    fraction_of_limit: `limit_token_s` divided by the median of `token_s`.
    speedup, times_peer: tokens/s divided by tokens/s without the cache, and by tokens/s of the fastest peer.
    """

    way: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    first_token_s: Measured
    token_s: Measured | None
    tokens_per_s: Measured
    peak_memory_bytes: int | None = None
    cache_bytes: int | None = None
    limit_token_s: float | None = None
    fraction_of_limit: float | None = None
    speedup: float | None = None
    times_peer: float | None = None

    @property
    def workload(self) -> Workload:
        return Workload(self.batch, self.prompt_tokens, self.new_tokens)


def ours(model: Decoder, compile: bool, uncached: bool) -> list[Way]:
    """Our ways: with the cache, and if `uncached` also without it.

    compile: compiles the steps with the cache. Steps without it are never compiled: each has another length.
    """
    ways = [Way(CACHED, partial(time_greedy, model, use_cache=True, compile=compile))]
    return [*ways, Way(UNCACHED, partial(time_greedy, model, use_cache=False))] if uncached else ways


def random_prompts(workload: Workload, vocab_size: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (workload.batch, workload.prompt_tokens), generator=generator).tolist()


def measure(
    ways: list[Way],
    workloads: list[Workload],
    rounds: int,
    prompts: Callable[[Workload], list[list[int]]],
    device: torch.device,
    say: Callable[[str], None],
) -> list[Point]:
    """A point for every way at every workload. At each workload, every round times each way once.

    prompts: the token ids of a workload. say: called with a line of text as each turn begins.
    """
    points = []
    for workload in workloads:
        contestants = [_Contestant(way, workload, prompts(workload), device) for way in ways]

        def announce(number: int, turn: int, workload=workload) -> None:
            say(f"{name_of_round(number, rounds)}: {ways[turn].name}, {workload}")

        samples = take_turns(contestants, rounds, announce)
        points += [_point(one, seconds) for one, seconds in zip(contestants, samples, strict=True)]
    return points


class _Contestant:
    """A way at a workload. A call times it once; on a GPU the first call, the warm-up, also measures peak memory."""

    def __init__(self, way: Way, workload: Workload, prompts: list[list[int]], device: torch.device):
        self.way, self.workload = way, workload
        self._prompts, self._device = prompts, device
        self.peak_memory_bytes: int | None = None

    def __call__(self) -> Seconds:
        if self._device.type == "cuda" and self.peak_memory_bytes is None:
            return self._with_peak_memory()
        return self.way.time(self._prompts, self.workload.new_tokens)

    def _with_peak_memory(self) -> Seconds:
        forget()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        seconds = self.way.time(self._prompts, self.workload.new_tokens)
        self.peak_memory_bytes = torch.cuda.max_memory_allocated(self._device) - before
        return seconds


def _point(contestant: _Contestant, samples: list[Seconds]) -> Point:
    workload = contestant.workload
    steps, tokens = workload.new_tokens - 1, workload.batch * workload.new_tokens
    return Point(
        way=contestant.way.name,
        batch=workload.batch,
        prompt_tokens=workload.prompt_tokens,
        new_tokens=workload.new_tokens,
        first_token_s=over_rounds([first for first, _ in samples]),
        token_s=over_rounds([(whole - first) / steps for first, whole in samples]) if steps else None,
        tokens_per_s=over_rounds([tokens / whole for _, whole in samples]),
        peak_memory_bytes=contestant.peak_memory_bytes,
    )


def with_limits(points: list[Point], work: Work, limits: Limits) -> list[Point]:
    """Fills in `cache_bytes`, `limit_token_s` and `fraction_of_limit` of our own ways."""
    return [_with_limit(point, work, limits) if point.way in (CACHED, UNCACHED) else point for point in points]


def _with_limit(point: Point, work: Work, limits: Limits) -> Point:
    cached = point.way == CACHED
    limit = work.limit(limits, point.batch, point.prompt_tokens, point.new_tokens, cached)
    length = point.workload.length - 1  # the last new token never enters the model
    return replace(
        point,
        cache_bytes=point.batch * work.model.cache_bytes(length) if cached else 0,
        limit_token_s=limit,
        fraction_of_limit=None if limit is None else limit / point.token_s.median,
    )


def with_ratios(points: list[Point]) -> list[Point]:
    """Fills in `speedup` and `times_peer` of the points with the cache, from the others at the same workload."""
    return [_with_ratio(point, points) if point.way == CACHED else point for point in points]


def _with_ratio(point: Point, points: list[Point]) -> Point:
    rates = {other.way: other.tokens_per_s.median for other in points if other.workload == point.workload}
    rate, uncached = rates.pop(CACHED), rates.pop(UNCACHED, None)
    return replace(
        point,
        speedup=rate / uncached if uncached else None,
        times_peer=rate / max(rates.values()) if rates else None,
    )
