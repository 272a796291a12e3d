"""Positions: how a token knows where in its document it stands.

Positions are data, `[B, T]`, counted from 0 within a document. A component may add to the token
embeddings (absolute positions), or rotate queries and keys (rotary positions).
"""

import torch
from torch import Tensor, nn

from ablate.errors import AblateError
from ablate.model.registry import Axis

POSITIONS = Axis("model.position")


class Position(nn.Module):
    """The contract. `given` to every component: model width, width of a head, context length."""

    absolute = False  # acts once, on the embeddings, so that it cannot differ from layer to layer
    limit: int | None = None  # positions at or beyond it have no meaning

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings `[B, T, D]` and positions `[B, T]` -> `[B, T, D]`."""
        return x

    def rotation(self, positions: Tensor) -> Tensor | None:
        """What `rotate` needs of the positions: computed once per pass, shared by all layers."""
        return None

    def rotate(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Queries or keys `[B, T, H, head_dim]` -> the same shape."""
        return x


@POSITIONS.register("learned")
class Learned(Position):
    """A trained vector per position, added to the embedding (Gehring et al. 2017; GPT-2)."""

    absolute = True

    def __init__(self, dim: int, head_dim: int, context: int, *, max_positions: int | None = None):
        super().__init__()
        self.limit = context if max_positions is None else max_positions
        if self.limit < context:
            raise AblateError(
                f"model.context={context} is beyond the {self.limit} learned positions: "
                "raise model.position.max_positions or lower model.context"
            )
        self.table = nn.Embedding(self.limit, dim)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table(positions)


@POSITIONS.register("sinusoidal")
class Sinusoidal(Position):
    """Fixed sines and cosines of the position, added to the embedding (Vaswani et al. 2017, 3.5).

    As in the paper (3.4) the embedding is multiplied by sqrt(dim) first: without that the sines,
    of amplitude 1, would drown it.
    """

    absolute = True

    def __init__(self, dim: int, head_dim: int, context: int, *, theta: float = 10000.0):
        super().__init__()
        if dim % 2:
            raise AblateError(f"model.dim={dim}: sinusoidal positions need an even width")
        self.scale = dim**0.5
        self.width, self.theta = dim, _positive(theta)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        angle = positions.unsqueeze(-1) * _frequencies(self.width, self.theta, positions.device)
        return x * self.scale + torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).to(x.dtype)


@POSITIONS.register("rope")
class Rotary(Position):
    """Rotates each pair of channels (2i, 2i+1) by position * theta^(-2i/head_dim) (Su et al. 2021)."""

    def __init__(self, dim: int, head_dim: int, context: int, *, theta: float = 10000.0):
        super().__init__()
        if head_dim % 2:
            raise AblateError(f"model.attention.head_dim={head_dim}: rotary positions need an even head width")
        self.width, self.theta = head_dim, _positive(theta)

    def rotation(self, positions: Tensor) -> Tensor:
        """`[B, T] -> [B, T, 1, head_dim / 2, 2]`: cosine and sine of each angle, fp32."""
        angle = positions.unsqueeze(-1) * _frequencies(self.width, self.theta, positions.device)
        return torch.stack((angle.cos(), angle.sin()), dim=-1).unsqueeze(2)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        pairs = x.float().unflatten(-1, (-1, 2))
        if torch.compiler.is_compiling():  # the compiler fuses this form; it does not know complex numbers
            (a, b), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
            rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
        else:
            rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
        return rotated.flatten(-2).to(x.dtype)


def _positive(theta: float) -> float:
    if not theta > 0:
        raise AblateError(f"model.position.theta={theta}: expected a number above 0")
    return theta


def _frequencies(width: int, theta: float, device: torch.device) -> Tensor:
    """theta^(-2i/width) for i in 0 .. width/2 - 1, fp32."""
    return theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
