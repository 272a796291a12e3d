"""Initial weights, drawn from the seed and the parameter's name only.

Two models that share a part start it with equal weights, whatever else differs: a comparison needs that.
"""

import hashlib

import torch
from torch import Tensor, nn

from ablate.model.roles import DRAWN, Role, declared


@torch.no_grad()
def initialise(model: nn.Module, dim: int, depth: int, seed: int) -> None:
    """Draws matrices and embeddings from N(0, 2 / (5 dim)) (Nguyen and Salazar 2019, "SmallInit"); biases are 0.

    Maps that write to the residual stream start smaller by 1 / sqrt(2 depth), so that its variance does not grow with
    depth (GPT-2, Radford et al. 2019). An `init_scale` multiplies the standard deviation, too. Vectors other than
    biases stay as their modules made them.
    """
    std = (2 / (5 * dim)) ** 0.5
    for one in declared(model):
        if one.parameter.is_meta:
            continue
        if one.bias:
            one.parameter.zero_()
        elif one.role in DRAWN:
            scale = one.init_scale * ((2 * depth) ** -0.5 if one.residual_out else 1.0)
            _draw(one.parameter, std * scale, seed, one.name.removesuffix(".weight"), one.role)


def _draw(parameter: Tensor, std: float, seed: int, name: str, role: Role) -> None:
    """Draws each expert by its own number, so that it starts the same whatever the number of experts."""
    parts = {f"{name}.{i}": part for i, part in enumerate(parameter)} if role == Role.EXPERTS else {name: parameter}
    for key, part in parts.items():
        part.copy_(torch.empty(part.shape).normal_(0.0, std, generator=_generator(seed, key)))


def _generator(seed: int, name: str) -> torch.Generator:
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
