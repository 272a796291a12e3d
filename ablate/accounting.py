"""What a model costs: parameters, FLOPs and cache bytes, counted on the model itself."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ablate.model.decoder import Decoder


@dataclass(frozen=True)
class Budget:
    """Parameters, forward FLOPs (2 per multiply-add) and cache bytes of one decoder."""

    total: int  # parameters, tied ones once
    active: int  # parameters that one token passes through
    non_embedding: int  # without token embedding, output head and position table (Kaplan et al. 2020)
    flops_per_token: float  # forward, averaged over a full context, attention as its pattern has it
    training_flops_per_token: float  # forward and backward: three times that
    kv_bytes_per_token: int  # cache bytes of one more token while nothing is forgotten yet

    def to_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def budget(model: Decoder) -> Budget:
    """Counts `model` from a twin on the meta device: nothing is computed, nothing is guessed."""
    with torch.device("meta"):
        twin = Decoder(dataclasses.replace(model.config, kernel="reference"))
    counts = {name: p.numel() for name, p in twin.named_parameters()}
    total = sum(counts.values())
    embedding = sum(n for name, n in counts.items() if name.split(".")[0] in ("embedding", "head", "positions"))
    flops = _token_flops(twin) + _attention_flops(twin)
    itemsize = model.embedding.weight.element_size()
    kv_bytes = sum(2 * shape.kv_heads * shape.head_dim * itemsize for shape in twin.cache_shapes(1))
    active = total - sum(block.ffn.idle_parameters() for block in twin.blocks)
    return Budget(total, active, total - embedding, flops, 3 * flops, kv_bytes)


def _token_flops(twin: Decoder) -> int:
    """FLOPs of every matrix product that one token passes through, attention's own two left out."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.zeros(1, 1, dtype=torch.int64, device="meta"))
    return counter.get_total_flops() - sum(_pair_flops(twin, block) for block in twin.blocks)


def _attention_flops(twin: Decoder) -> float:
    """FLOPs per token of scores and weighted values, over exactly the pairs that each pattern allows."""
    context = twin.config.context
    return sum(
        _pair_flops(twin, block) * layer.pattern.pairs(context) / context
        for block, layer in zip(twin.blocks, twin.layers, strict=True)
    )


def _pair_flops(twin: Decoder, block: nn.Module) -> int:
    """FLOPs of one query meeting one key, in all heads: a score, and a weighted value."""
    return 4 * twin.config.heads * block.attention.head_dim
