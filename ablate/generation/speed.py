"""How fast a model generates, with the KV cache and without it."""

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ablate.errors import AblateError
from ablate.generation.decode import stream_tokens
from ablate.generation.prompts import check_prompts
from ablate.generation.sampling import GREEDY

if TYPE_CHECKING:
    from ablate.model.decoder import Decoder

WARM_UP = 4  # new tokens


def measure_generation(
    model: "Decoder", prompt: Sequence[int], new_tokens: int, rounds: int = 3
) -> dict[str, float | int]:
    """Greedy generation for one prompt of token ids, by the clock: medians over `rounds`.

    Each round measures both ways, one after the other, so that a slower spell of the machine
    falls on both. Returns:

        cached_tokens_per_s     new tokens per second with the cache, the prompt's pass included
        uncached_tokens_per_s   the same, the whole sequence run again for every token
        speedup                 the first over the second
        cached_first_token_s    seconds from the prompt to the first new token, with the cache
        cache_bytes             of keys and values, for the whole sequence, in the model's dtype
        prompt_tokens, new_tokens

    Raises:
        AblateError: a prompt that the model cannot take, rounds below 1, or more tokens than its context.
    """
    (row,) = check_prompts(model, [prompt])
    for name, value in (("new_tokens", new_tokens), ("rounds", rounds)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AblateError(f"{name}={value!r}: an integer, at least 1")
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

    The device is waited for after the first token and at the end, not step by step.
    """
    device = model.embedding.weight.device
    wait(device)
    start = time.perf_counter()
    steps = stream_tokens(model, rows, new_tokens, sampling=GREEDY, use_cache=use_cache, compile=compile)
    next(steps)
    wait(device)
    first = time.perf_counter() - start
    for _ in steps:
        pass
    wait(device)
    return first, time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
