"""How fast a model generates, with the KV cache and without it."""

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ablate import check
from ablate.errors import AblateError
from ablate.generation.decode import stream_tokens
from ablate.generation.prompts import check_prompts

if TYPE_CHECKING:
    from ablate.model.decoder import Decoder

WARM_UP = 4  # new tokens that are generated before any is timed


def measure_generation(
    model: "Decoder", prompt: Sequence[int], new_tokens: int, rounds: int = 3
) -> dict[str, float | int]:
    """Times greedy generation for one prompt of token ids, with and without the cache: medians over `rounds`.

    Each round measures both, one after the other, so that a slow moment of the machine affects both. Returns:

        cached_tokens_per_s     new tokens per second with the cache, the prompt's pass included
        uncached_tokens_per_s   the same without the cache: every token computes the whole sequence again
        speedup                 the first over the second
        cached_first_token_s    seconds from the prompt to the first new token, with the cache
        cache_bytes             of the keys and values of the whole sequence, in the model's dtype
        prompt_tokens, new_tokens

    Raises:
        AblateError: a prompt that the model cannot take, a count below 1, or more tokens than the model's context.
    """
    (row,) = check_prompts(model, [prompt])
    check.whole("new_tokens", new_tokens, 1)
    check.whole("rounds", rounds, 1)
    total, context = len(row) + new_tokens, model.config.context
    if total > context:
        raise AblateError(
            f"a prompt of {len(row)} tokens and new_tokens={new_tokens} make {total}, more than the {context} tokens "
            "of the model's context: shorten the prompt or lower new_tokens"
        )
    for use_cache in (True, False):
        time_greedy(model, [row], min(WARM_UP, new_tokens), use_cache)
    cached, uncached = [], []
    for _ in range(rounds):
        cached.append(time_greedy(model, [row], new_tokens, use_cache=True))
        uncached.append(time_greedy(model, [row], new_tokens, use_cache=False))
    first, fast = (statistics.median(times) for times in zip(*cached, strict=True))
    slow = statistics.median(total for _, total in uncached)
    return {
        "cached_tokens_per_s": new_tokens / fast,
        "uncached_tokens_per_s": new_tokens / slow,
        "speedup": slow / fast,
        "cached_first_token_s": first,
        "cache_bytes": model.cache_bytes(total - 1),
        "prompt_tokens": len(row),
        "new_tokens": new_tokens,
    }


def time_greedy(
    model: "Decoder", rows: list[list[int]], new_tokens: int, use_cache: bool, compile: bool = False
) -> tuple[float, float]:
    """Seconds from the prompts' token ids to the first new token, and to the last.

    Waits for the device after the first token and after the last, not at every step.
    """
    device = model.embedding.weight.device
    wait(device)
    start = time.perf_counter()
    steps = stream_tokens(model, rows, new_tokens, use_cache=use_cache, compile=compile)
    next(steps)
    wait(device)
    first = time.perf_counter() - start
    for _ in steps:
        pass
    wait(device)
    return first, time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Returns when the device has finished all work that was sent to it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
