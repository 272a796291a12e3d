"""From logits to the next token: repetition penalty, temperature, top-k, top-p, min-p; or greedy."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ablate.errors import AblateError, AblateWarning


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The options work in this order, each on what the one before leaves.

    repetition_penalty: of the tokens that a row already holds, its prompt included, positive logits are divided by it
        and negative ones multiplied (Keskar et al. 2019, CTRL; the negative ones as transformers does). 1: none.
    temperature: logits are divided by it; 0 takes the most probable token (greedy).
    top_k: only the k most probable tokens (Fan et al. 2018). None: all.
    top_p: only the fewest tokens whose probability reaches p together (Holtzman et al. 2020). None: all.
    min_p: only tokens at least this times as probable as the most probable one (Nguyen et al. 2024). None: all.

    Raises:
        AblateError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not _number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise AblateError(f"temperature={self.temperature!r}: at least 0, and finite (0 is greedy)")
        if self.top_k is not None and (not _number(self.top_k) or self.top_k % 1 != 0 or self.top_k < 1):
            raise AblateError(f"top_k={self.top_k!r}: an integer, at least 1 (null: all tokens)")
        if self.top_p is not None and (not _number(self.top_p) or not 0 < self.top_p <= 1):
            raise AblateError(f"top_p={self.top_p!r}: above 0, at most 1 (null: all tokens)")
        if self.min_p is not None and (not _number(self.min_p) or not 0 <= self.min_p < 1):
            raise AblateError(f"min_p={self.min_p!r}: at least 0, below 1 (null: all tokens)")
        if not _number(self.repetition_penalty) or not 0 < self.repetition_penalty < math.inf:
            raise AblateError(f"repetition_penalty={self.repetition_penalty!r}: above 0, and finite (1 is none)")
        idle = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
        if self.temperature == 0 and idle:
            warnings.warn(
                f"{', '.join(idle)}: no effect at temperature=0 (greedy); set temperature=1.0 to sample",
                AblateWarning,
                stacklevel=3,
            )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


GREEDY = Sampling(temperature=0.0)


def choose(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None, seen: Tensor | None = None
) -> Tensor:
    """Logits `[B, V]`, of any float type -> one token id a row, `[B]`. Computes in fp32; never waits for the device.

    seen: `[B, V]`, True for the tokens that a row already holds; what `repetition_penalty` is about.

    A greedy choice depends on its own row alone. A sampled one does not: one generator (on the
    logits' device) draws for all rows, so that the same seed gives the same ids for the same
    batch on the same machine, but not for a row alone and in a batch.
    """
    logits = logits.float()
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits, ids = candidates(logits, sampling)
    # The largest of logits + Gumbel noise is a draw from their softmax (Gumbel 1954). torch.multinomial
    # is the same, but it checks its input on the host.
    noise = torch.empty_like(logits).exponential_(generator=generator)
    drawn = (logits - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()).argmax(-1)
    return drawn if ids is None else ids.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits `[B, V]` after temperature, top-k, top-p and min-p: `[B, C]`, -inf on what may not be drawn.

    And the ids `[B, C]` of the C candidates, most probable first; None: candidate i is token i.
    """
    # Less the largest first: a tiny temperature then leads to 0 and -inf, never to inf - inf.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, 1e-30)
    ids = None
    if sampling.top_k is not None:
        logits, ids = logits.topk(min(int(sampling.top_k), logits.shape[-1]))
    if sampling.top_p is not None and sampling.top_p < 1:  # 1 keeps all; rounding in the sum would not
        if ids is None:
            logits, ids = logits.sort(descending=True, stable=True)
        probability = logits.softmax(-1)
        before = probability.cumsum(-1) - probability  # exactly 0 for the most probable, which stays
        logits = logits.masked_fill(before >= sampling.top_p, -math.inf)
    if sampling.min_p:  # the most probable token is at 0
        logits = logits.masked_fill(logits < math.log(sampling.min_p), -math.inf)
    return logits, ids
