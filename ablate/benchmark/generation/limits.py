"""The least time that a step of decoding can take: bytes over memory bandwidth, FLOPs over the rate of matrix products.

A step reads every weight that its tokens pass through once, and the keys and values that its rows hold. Both rates
are measured here and now, so that the limit is this machine's and not a data sheet's.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from ablate.accounting import attention_flops, matrix_flops, meta_twin
from ablate.hardware import measured_flops
from ablate.model.decoder import Decoder
from ablate.model.memory import machine_memory

PASSES = 8  # over the buffer whose reading is timed; the best counts
BUFFER = {"cpu": 2**29, "cuda": 2**32}  # bytes: many times what caches hold


@dataclass(frozen=True)
class Limits:
    """What the machine can do at most, as measured."""

    bandwidth_bytes_per_s: float
    flops_per_s: float

    def seconds(self, nbytes: float, flops: float) -> float:
        return max(nbytes / self.bandwidth_bytes_per_s, flops / self.flops_per_s)

    def or_better(self, other: "Limits") -> "Limits":
        """A slow spell of the machine makes a limit too low; none makes it too high."""
        return Limits(
            max(self.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s), max(self.flops_per_s, other.flops_per_s)
        )


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    return Limits(read_bandwidth(device), measured_flops(device, dtype))


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second at which all threads together read a buffer larger than every cache."""
    free = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else machine_memory() // 8
    buffer = torch.ones(min(BUFFER[device.type], free) // 4, device=device)
    best = float("inf")
    for _ in range(PASSES):
        start = time.perf_counter()
        buffer.sum().item()
        best = min(best, time.perf_counter() - start)
    return 4 * buffer.numel() / best


def weight_bytes(model: Decoder, tokens: int) -> int:
    """Bytes of weights that a pass of `tokens` tokens reads, each once.

    Of a table (embeddings, learned positions) a row a token; one that is the head too is read whole. Of a mixture's
    experts as many as the tokens can choose: `top_k` for one token, at most all.
    """
    read = sum(p.numel() for p in model.parameters())
    for table in model.modules():
        if isinstance(table, nn.Embedding) and table.weight is not model.head.weight:
            read -= max(0, table.num_embeddings - tokens) * table.embedding_dim
    read -= sum(block.ffn.idle_parameters(tokens) for block in model.blocks)
    return read * model.embedding.weight.element_size()


class Work:
    """What the passes of greedy decoding read and compute, counted on the model itself."""

    def __init__(self, model: Decoder):
        self.model = model
        self._head = 2 * model.config.dim * model.config.vocab_size
        self._token = matrix_flops(meta_twin(model)) - self._head

    def step(self, batch: int, seen: int) -> tuple[int, int]:
        """Bytes and FLOPs of the pass that takes in token number `seen` of each row, the others being in the cache."""
        nbytes = weight_bytes(self.model, batch) + batch * self.model.cache_bytes(seen)
        attention = attention_flops(self.model, seen) - attention_flops(self.model, seen - 1)
        return nbytes, batch * (self._token + self._head + attention)

    def whole(self, batch: int, seen: int) -> tuple[int, int]:
        """The same without a cache: all `seen` tokens of each row again, the head for the last of them alone."""
        attention = attention_flops(self.model, seen)
        return weight_bytes(self.model, batch * seen), batch * (seen * self._token + self._head + attention)

    def limit(self, limits: Limits, batch: int, prompt_tokens: int, new_tokens: int, cached: bool) -> float | None:
        """Seconds that a step after the first new token takes at least, on average; None: there is none."""
        one = self.step if cached else self.whole
        steps = range(prompt_tokens + 1, prompt_tokens + new_tokens)
        return statistics.fmean(limits.seconds(*one(batch, seen)) for seen in steps) if steps else None
