"""The least time that a step of decoding can take: bytes over memory bandwidth, or FLOPs over the rate of matrix
products, whichever is longer (the roofline model: Williams, Waterman and Patterson 2009).

A step reads each weight that its tokens use once, and the keys and values in the cache. Both rates are measured when
the benchmark runs: the limit is that of this machine, not of a data sheet.
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

PASSES = 8  # timed reads of the buffer; the fastest counts
BUFFER = {"cpu": 2**29, "cuda": 2**32}  # bytes: many times the size of a processor's caches


@dataclass(frozen=True)
class Limits:
    """The measured rates of the machine."""

    bandwidth_bytes_per_s: float
    flops_per_s: float

    def seconds(self, nbytes: float, flops: float) -> float:
        """The least time to read `nbytes` bytes and compute `flops` FLOPs at the same time."""
        return max(nbytes / self.bandwidth_bytes_per_s, flops / self.flops_per_s)

    def or_better(self, other: "Limits") -> "Limits":
        """The higher of each rate: other work on the machine can make a measured rate too low, never too high."""
        return Limits(
            max(self.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s), max(self.flops_per_s, other.flops_per_s)
        )


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    return Limits(read_bandwidth(device), measured_flops(device, dtype))


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second at which all threads together read a buffer much larger than the processor's caches."""
    free = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else machine_memory() // 8
    buffer = torch.ones(min(BUFFER[device.type], free) // 4, device=device)
    best = float("inf")
    for _ in range(PASSES):
        start = time.perf_counter()
        buffer.sum().item()
        best = min(best, time.perf_counter() - start)
    return 4 * buffer.numel() / best


def weight_bytes(model: Decoder, tokens: int) -> int:
    """Bytes of weights that a forward pass of `tokens` tokens reads, each weight once.

    Of a table (embeddings, learned positions) one row per token is read, or all rows if it is also the output head. A
    mixture counts the most experts that the tokens can choose: `top_k` for one token, up to all for many.
    """
    read = sum(p.numel() for p in model.parameters())
    for table in model.modules():
        if isinstance(table, nn.Embedding) and table.weight is not model.head.weight:
            read -= max(0, table.num_embeddings - tokens) * table.embedding_dim
    read -= sum(block.ffn.idle_parameters(tokens) for block in model.blocks)
    return read * model.embedding.weight.element_size()


class Work:
    """Bytes read and FLOPs computed by the forward passes of greedy decoding, counted on the model itself."""

    def __init__(self, model: Decoder):
        self.model = model
        self._head = 2 * model.config.dim * model.config.vocab_size
        self._token = matrix_flops(meta_twin(model)) - self._head

    def step(self, batch: int, seen: int) -> tuple[int, int]:
        """Bytes and FLOPs of a pass with the cache, over the last of `seen` tokens in each of `batch` rows."""
        nbytes = weight_bytes(self.model, batch) + batch * self.model.cache_bytes(seen)
        attention = attention_flops(self.model, seen) - attention_flops(self.model, seen - 1)
        return nbytes, batch * (self._token + self._head + attention)

    def whole(self, batch: int, seen: int) -> tuple[int, int]:
        """Bytes and FLOPs of a pass without a cache, over all `seen` tokens of each row, with logits of the last."""
        attention = attention_flops(self.model, seen)
        return weight_bytes(self.model, batch * seen), batch * (seen * self._token + self._head + attention)

    def limit(self, limits: Limits, batch: int, prompt_tokens: int, new_tokens: int, cached: bool) -> float | None:
        """The least seconds of a step after the first new token, averaged over these steps; None without such steps."""
        one = self.step if cached else self.whole
        steps = range(prompt_tokens + 1, prompt_tokens + new_tokens)
        return statistics.fmean(limits.seconds(*one(batch, seen)) for seen in steps) if steps else None
