"""Tiny random models over every registered component, for the tests of this folder."""

from itertools import combinations

import torch

from ablate.model.config import AXES, DecoderConfig
from ablate.model.decoder import Decoder

VOCAB, CONTEXT = 31, 24
BASE = {
    "norm": "rmsnorm",
    "placement": "pre",
    "attention": "gqa",
    "position": "rope",
    "pattern": "full",
    "ffn": "swiglu",
}
SMALL = {"window": 5, "stride": 3, "block": 4, "summary": 1, "hidden": 16, "kv_heads": 2, "experts": 4}
PAIRS = sorted(
    {
        tuple(sorted({**BASE, a: x, b: y}.items()))
        for a, b in combinations(AXES, 2)
        for x in AXES[a].names()
        for y in AXES[b].names()
    }
)


def component(axis: str, name: str) -> dict:
    options = AXES[axis].options(name)
    return {"name": name} | {key: value for key, value in SMALL.items() if key in options}


def tiny(seed: int = 0, *, vocab_size: int = VOCAB, context: int = CONTEXT, kernel: str = "auto", **choice) -> Decoder:
    """A model of width 16, depth 2; an axis is a name, or a whole node."""
    nodes = {axis: choice.get(axis, BASE[axis]) for axis in AXES}
    nodes = {axis: component(axis, node) if isinstance(node, str) else node for axis, node in nodes.items()}
    config = DecoderConfig.from_dict(
        {"dim": 16, "depth": 2, "heads": 4, "context": context, "vocab_size": vocab_size, "kernel": kernel, **nodes}
    )
    model = Decoder(config, seed)
    with torch.no_grad():  # far from the small initial weights: attention and positions then matter
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model
