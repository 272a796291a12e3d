"""From logits to the next token: greedy, temperature, top-k, top-p."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ablate.errors import AblateError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The three work in this order, each on what the one before leaves.

    temperature: logits are divided by it; 0 takes the most probable token (greedy).
    top_k: only the k most probable tokens (Fan et al. 2018). None: all.
    top_p: only the fewest tokens whose probability reaches p together (Holtzman et al. 2020). None: all.

    Raises:
        AblateError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not _number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise AblateError(f"temperature={self.temperature!r}: at least 0, and finite (0 is greedy)")
        if self.top_k is not None and (not _number(self.top_k) or self.top_k != int(self.top_k) or self.top_k < 1):
            raise AblateError(f"top_k={self.top_k!r}: an integer, at least 1 (null: all tokens)")
        if self.top_p is not None and (not _number(self.top_p) or not 0 < self.top_p <= 1):
            raise AblateError(f"top_p={self.top_p!r}: above 0, at most 1 (null: all tokens)")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            warnings.warn(
                "top_k and top_p have no effect at temperature=0 (greedy): set temperature=1.0 to sample", stacklevel=3
            )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Logits `[B, V]`, of any float type -> one token id a row, `[B]`. Computes in fp32; never waits for the device.

    A greedy choice depends on its own row alone. A sampled one does not: one generator (on the
    logits' device) draws for all rows, so that the same seed gives the same ids for the same
    batch on the same machine, but not for a row alone and in a batch.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return logits.argmax(-1)
    # Less the largest first: a tiny temperature then leads to 0 and -inf, never to inf - inf.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, 1e-30)
    ids = None  # of the candidates, most probable first; None: candidate i is token i
    if sampling.top_k is not None:
        logits, ids = logits.topk(min(int(sampling.top_k), logits.shape[-1]))
    if sampling.top_p is not None and sampling.top_p < 1:  # 1 keeps all; rounding in the sum would not
        if ids is None:
            logits, ids = logits.sort(descending=True, stable=True)
        probability = logits.softmax(-1)
        before = probability.cumsum(-1) - probability  # exactly 0 for the most probable, which stays
        logits = logits.masked_fill(before >= sampling.top_p, -math.inf)
    # The largest of logits + Gumbel noise is a draw from their softmax (Gumbel 1954). torch.multinomial
    # is the same, but it checks its input on the host.
    noise = torch.empty_like(logits).exponential_(generator=generator)
    drawn = (logits - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()).argmax(-1)
    return drawn if ids is None else ids.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
