"""The tiny models of tests/model/zoo.py for the tests of generation: smaller, and with larger weights."""

from itertools import combinations

import torch
from model.zoo import BASE, config

from ablate.model.config import AXES
from ablate.model.decoder import Decoder

VOCAB, CONTEXT = 31, 24
PAIRS = sorted(
    {
        tuple(sorted({**BASE, a: x, b: y}.items()))
        for a, b in combinations(AXES, 2)
        for x in AXES[a].names()
        for y in AXES[b].names()
    }
)


def tiny(seed: int = 0, **changes) -> Decoder:
    """A model of width 16, depth 2. `changes`: scalars by value, axes by name or node."""
    model = Decoder(config(**{"dim": 16, "context": CONTEXT, "vocab_size": VOCAB, **changes}), seed)
    with torch.no_grad():  # far from the small initial weights: attention and positions then matter
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model
