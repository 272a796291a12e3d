"""What a model costs: parameters, FLOPs and cache bytes, counted on the model itself."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ablate.model.decoder import Decoder
from ablate.model.roles import Role, declared


@dataclass(frozen=True)
class Budget:
    """What one decoder costs: parameters, FLOPs (2 per multiply-add) and cache bytes."""

    total: int  # parameters; tied ones count once
    active: int  # parameters that one token passes through
    non_embedding: int  # without token embedding, output head and position table (Kaplan et al. 2020)
    flops_per_token: float  # forward, averaged over a full context, attention over the pairs that its pattern allows
    training_flops_per_token: float  # forward and backward: 3 x forward, for documents as they are packed
    kv_bytes_per_token: int  # cache bytes that one more token costs while the cache forgets nothing

    def to_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def budget(model: Decoder, pieces: Mapping[int, int] | None = None) -> Budget:
    """Counts `model` on a twin on the meta device, where nothing is computed.

    pieces: {length: count} of the spans that attention does not cross in training (`RowSource.pieces`); None: full
        contexts.
    """
    twin = meta_twin(model)
    parameters = declared(twin)
    total = sum(one.parameter.numel() for one in parameters)
    embedding = sum(one.parameter.numel() for one in parameters if one.role in (Role.EMBEDDING, Role.HEAD))
    context = twin.config.context
    matrix = matrix_flops(twin)
    flops = matrix + attention_flops(twin, context) / context
    trained = pieces or {context: 1}
    tokens = sum(length * count for length, count in trained.items())
    packed = matrix + sum(attention_flops(twin, length) * count for length, count in trained.items()) / tokens
    active = total - sum(block.ffn.idle_parameters() for block in twin.blocks)
    return Budget(total, active, total - embedding, flops, 3 * packed, model.cache_bytes(1))


def tokens_per_step(config: Mapping[str, Any]) -> int:
    """Tokens of one optimiser step of a run, padding included, over all its micro-batches and devices."""
    data, trainer = config["data"], config["trainer"]
    batches = trainer["accumulate_grad_batches"] * trainer["devices"] * trainer["num_nodes"]
    return data["batch_size"] * data["context"] * batches


def meta_twin(model: Decoder) -> Decoder:
    """The same model without weights, on the meta device, where FLOPs are counted without being computed."""
    with torch.device("meta"):
        return Decoder(dataclasses.replace(model.config, kernel="reference"))


def matrix_flops(twin: Decoder) -> int:
    """FLOPs of every matrix product that one token passes through, except attention's two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.zeros(1, 1, dtype=torch.int64, device="meta"))
    return counter.get_total_flops() - sum(_pair_flops(twin, block) for block in twin.blocks)


def attention_flops(model: Decoder, length: int) -> int:
    """FLOPs of scores and weighted values in a text of `length` tokens, over exactly the pairs that patterns allow."""
    return sum(
        _pair_flops(model, block) * layer.pattern.pairs(length)
        for block, layer in zip(model.blocks, model.layers, strict=True)
    )


def _pair_flops(model: Decoder, block: nn.Module) -> int:
    """FLOPs of one query and one key, in all heads: a score and a weighted value."""
    return 4 * model.config.heads * block.attention.head_dim
