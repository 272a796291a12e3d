"""What each parameter is for. Initialisation, weight decay and optimisers read its role, never its name or shape.

The module that owns a parameter declares its role, in an attribute `roles`:

    class Mixture(nn.Module):
        roles: ClassVar = {"weight": Role.EXPERTS, "bias": Role.VECTOR}

Matrices, experts, embeddings and heads are drawn at random and decayed; a vector declared beside one is its bias, and
starts at 0. A parameter without a declaration is a vector: its module initialises it, and it is not decayed, as suits
the gain of a norm. A table below has the roles of torch's own modules.
"""

from dataclasses import dataclass
from enum import StrEnum

from torch import nn


class Role(StrEnum):
    """What a parameter is for."""

    MATRIX = "matrix"  # [out, in], between hidden states
    EXPERTS = "experts"  # [E, out, in], a matrix for each expert
    EMBEDDING = "embedding"  # [rows, D], a row for each token or position
    HEAD = "head"  # [V, D], from hidden states to logits; a tied head is the embedding
    VECTOR = "vector"  # gains and biases


DRAWN = (Role.MATRIX, Role.EXPERTS, Role.EMBEDDING, Role.HEAD)

_OF_TORCH = {
    nn.Linear: {"weight": Role.MATRIX, "bias": Role.VECTOR},
    nn.Embedding: {"weight": Role.EMBEDDING},
}


@dataclass(frozen=True)
class Declared:
    """A parameter, its first name in the model, and what its module declares about it.

    bias: whether it is a vector declared beside a drawn parameter. residual_out: whether its output is added to the
    residual stream. init_scale: multiplies its initial standard deviation.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    bias: bool = False
    residual_out: bool = False
    init_scale: float = 1.0


def declared(model: nn.Module) -> list[Declared]:
    """Every parameter of a model once, in the order of `model.parameters()`."""
    owners = dict(model.named_modules())
    found = []
    for name, parameter in model.named_parameters():
        owner, _, attribute = name.rpartition(".")
        module = owners[owner]
        roles = _roles_of(module)
        role = Role(roles.get(attribute, Role.VECTOR))
        if role == Role.VECTOR:
            bias = attribute in roles and any(other in DRAWN for other in roles.values())
            found.append(Declared(name, parameter, role, bias))
        else:
            residual_out, init_scale = getattr(module, "residual_out", False), getattr(module, "init_scale", 1.0)
            found.append(Declared(name, parameter, role, False, residual_out, init_scale))
    return found


def _roles_of(module: nn.Module) -> dict[str, Role]:
    own = getattr(module, "roles", None)
    if own is not None:
        return own
    return next((roles for kind, roles in _OF_TORCH.items() if isinstance(module, kind)), {})
