"""Initial weights, a function of (seed, parameter name) alone.

Two models that share a part start it alike, whatever else differs: what a comparison wants.
"""

import hashlib

import torch
from torch import nn

from ablate.model.linear import GroupedLinear


def initialise(model: nn.Module, dim: int, depth: int, seed: int) -> None:
    """Matrices and embeddings N(0, 2 / (5 D)) (Nguyen and Salazar 2019, "SmallInit"), biases 0.

    The projections that write to the residual stream, called `out`, are scaled by
    1 / sqrt(2 depth), so that its variance does not grow with depth (GPT-2, Radford et al. 2019);
    a module with an `init_scale` by that.
    """
    std = (2 / (5 * dim)) ** 0.5
    done = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding | GroupedLinear) or module.weight.is_meta:
            continue
        if id(module.weight) in done:
            continue
        done.add(id(module.weight))
        residual = (2 * depth) ** -0.5 if name.rsplit(".", 1)[-1] == "out" else 1.0
        scale = getattr(module, "init_scale", residual)
        grouped = isinstance(module, GroupedLinear)  # then each map by its own number, however many there are
        weights = {f"{name}.{i}": w for i, w in enumerate(module.weight)} if grouped else {name: module.weight}
        with torch.no_grad():
            for key, weight in weights.items():
                weight.copy_(torch.empty(weight.shape).normal_(0.0, std * scale, generator=_generator(seed, key)))
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()


def _generator(seed: int, name: str) -> torch.Generator:
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
