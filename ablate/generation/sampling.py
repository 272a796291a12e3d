"""From logits to the next token: repetition penalty, temperature, top-k, top-p, min-p; or greedy."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ablate import check
from ablate.errors import warn


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The options apply in this order, each to the result of the one before.

    repetition_penalty: divides the positive logits of tokens that the row, including its prompt, already holds, and
        multiplies their negative logits (Keskar et al. 2019, CTRL; negative logits as in transformers). 1: no penalty.
    temperature: divides the logits; 0 takes the most probable token (greedy).
    top_k: keeps the k most probable tokens (Fan et al. 2018). None: all.
    top_p: keeps the fewest tokens whose probabilities add up to p (Holtzman et al. 2020). None: all.
    min_p: keeps tokens with at least `min_p` times the probability of the most probable one (Nguyen et al. 2024).
        None: all.

    Raises:
        AblateError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        check.number("temperature", self.temperature, least=0, hint="0: greedy")
        check.whole("top_k", self.top_k, 1, null=True, hint="null: all tokens")
        check.number("top_p", self.top_p, above=0, most=1, null=True, hint="null: all tokens")
        check.number("min_p", self.min_p, least=0, below=1, null=True, hint="null: all tokens")
        check.number("repetition_penalty", self.repetition_penalty, above=0, hint="1: no penalty")
        idle = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
        if self.temperature == 0 and idle:
            warn(f"{', '.join(idle)}: no effect at temperature=0 (greedy); set temperature=1.0 to sample")


GREEDY = Sampling(temperature=0.0)


def seeded(device: torch.device, seed: int) -> torch.Generator:
    """A generator of random numbers on the device."""
    return torch.Generator(device).manual_seed(seed)


def choose(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None, seen: Tensor | None = None
) -> Tensor:
    """Logits `[B, V]`, of any float type -> one token id per row, `[B]`. Computes in fp32; never waits for the device.

    generator: of random numbers, on the device of the logits; a greedy choice needs none.
    seen: `[B, V]`, True for the tokens that a row already holds: `repetition_penalty` applies to them.

    A greedy choice depends on its own row only. One generator draws for all rows, so a sampled choice depends on the
    whole batch: the same seed gives the same ids for the same batch on the same machine, but other ids for a single row
    of it.
    """
    logits = logits.float()
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits, ids = candidates(logits, sampling)
    # The largest of logits + Gumbel noise is a draw from their softmax (Gumbel 1954). torch.multinomial draws the
    # same way, but checks its input on the host, which waits for the device.
    noise = torch.empty_like(logits).exponential_(generator=generator)
    drawn = (logits - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()).argmax(-1)
    return drawn if ids is None else ids.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits `[B, V]` -> the logits `[B, C]` and token ids `[B, C]` of the C candidates, most probable first.

    Applies temperature, top-k, top-p and min-p. A token that may not be drawn has the logit -inf. Without top-k and
    top-p all tokens are candidates, in the order of their ids; then the ids are None.
    """
    # The largest logit is subtracted first: a tiny temperature then gives 0 and -inf, never inf - inf.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, 1e-30)
    ids = None
    if sampling.top_k is not None:
        logits, ids = logits.topk(min(sampling.top_k, logits.shape[-1]))
    if sampling.top_p is not None and sampling.top_p < 1:  # 1 keeps all tokens; the rounded sum would not
        if ids is None:
            logits, ids = logits.sort(descending=True, stable=True)
        probability = logits.softmax(-1)
        before = probability.cumsum(-1) - probability  # exactly 0 for the most probable token, which is kept
        logits = logits.masked_fill(before >= sampling.top_p, -math.inf)
    if sampling.min_p:  # the largest logit is 0
        logits = logits.masked_fill(logits < math.log(sampling.min_p), -math.inf)
    return logits, ids
