"""What each parameter is for. Initialisation, weight decay and optimisers read its role, never its name or shape.

The module that owns a parameter declares its role, in the class attribute `roles`:

    class Mixture(nn.Module):
        roles = {"weight": Role.EXPERTS, "bias": Role.VECTOR}

torch's own modules have theirs in a table here. A parameter without a declaration is a vector, which its module
initialises itself, and which is not decayed: right for the gains of a norm.
"""

from dataclasses import dataclass
from enum import StrEnum

from torch import nn


class Role(StrEnum):
    """What a parameter is for."""

    MATRIX = "matrix"  # [out, in], between hidden states
    EXPERTS = "experts"  # [E, out, in], a matrix for each expert
    EMBEDDING = "embedding"  # [rows, D], a row for each token or position
    HEAD = "head"  # [V, D], hidden states to logits; a tied head is the embedding
    VECTOR = "vector"  # gains, biases and single numbers


DRAWN = (Role.MATRIX, Role.EXPERTS, Role.EMBEDDING, Role.HEAD)  # start at random, and are decayed

_OF_TORCH = {
    nn.Linear: {"weight": Role.MATRIX},
    nn.Embedding: {"weight": Role.EMBEDDING},
}


@dataclass(frozen=True)
class Declared:
    """A parameter by its first name in the model, what it is for, and how it starts.

    residual_out: whether its product is added to the residual stream, as of the last map of a sublayer.
    init_scale: what its initial standard deviation is multiplied by, besides.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    residual_out: bool = False
    init_scale: float = 1.0


def declared(model: nn.Module) -> list[Declared]:
    """Every parameter of a model once, in the order of `model.parameters()`."""
    owners = dict(model.named_modules())
    found = []
    for name, parameter in model.named_parameters():
        owner, _, attribute = name.rpartition(".")
        module = owners[owner]
        role = _roles_of(module).get(attribute, Role.VECTOR)
        drawn = role in DRAWN
        residual_out = drawn and getattr(module, "residual_out", False)
        init_scale = getattr(module, "init_scale", 1.0) if drawn else 1.0
        found.append(Declared(name, parameter, role, residual_out, init_scale))
    return found


def _roles_of(module: nn.Module) -> dict[str, Role]:
    own = getattr(module, "roles", None)
    if own is not None:
        return own
    return next((roles for kind, roles in _OF_TORCH.items() if isinstance(module, kind)), {})
