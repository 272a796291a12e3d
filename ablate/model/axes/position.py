"""Positions: how a token knows its place in its document.

Positions are data, `[B, T]`, counted from 0 within a document. A component may add to the token embeddings (absolute
positions), rotate queries and keys (rotary positions), or add to the scores.
"""

import math

import torch
from torch import Tensor, nn

from ablate import check
from ablate.errors import AblateError
from ablate.model.given import Given
from ablate.registry import Axis

POSITIONS = Axis("model.position")


class Position(nn.Module):
    """The contract. `given.head_dim` is the width of the layer's attention heads."""

    absolute = False  # acts once, on the embeddings, so it cannot differ from layer to layer
    scales_embeddings = False  # multiplies the embeddings by sqrt(dim) itself
    biased = False  # whether it has a `bias`
    limit: int | None = None  # the number of positions that it has; None: no limit

    def __init__(self, given: Given):
        super().__init__()
        self.heads = given.heads

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings `[B, T, D]` and positions `[B, T]` -> `[B, T, D]`."""
        return x

    def rotation(self, positions: Tensor) -> Tensor | None:
        """What `rotate` needs from the positions `[B, T]`: computed once per pass, shared by all layers."""
        return None

    def rotate(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Queries or keys `[B, T, H, head_dim]` -> the same shape."""
        return x

    def bias(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """What is added to the score of a query and a key, fp32; elementwise on integers that broadcast."""
        raise NotImplementedError


@POSITIONS.register("none")
class NoPosition(Position):
    """No positions: only the causal mask tells the order (Haviv et al. 2022, Kazemnejad et al. 2023, "NoPE")."""


@POSITIONS.register("learned")
class Learned(Position):
    """A trained vector per position, added to the embedding (Gehring et al. 2017; GPT-2).

    Its initial weights are half as large as the token embedding's, as in GPT-2's code: at the same size they drown the
    tokens.

    max_positions: the number of positions; null: model.context.
    """

    absolute = True

    def __init__(self, given: Given, *, max_positions: int | None = None):
        super().__init__(given)
        self.limit = given.context if max_positions is None else max_positions
        if self.limit < given.context:
            raise AblateError(
                f"model.context={given.context} is beyond the {self.limit} learned positions: "
                "raise model.position.max_positions or lower model.context"
            )
        self.table = nn.Embedding(self.limit, given.dim)
        self.table.init_scale = 0.5

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table(positions)


@POSITIONS.register("sinusoidal")
class Sinusoidal(Position):
    """Fixed sines and cosines of the position, added to the embedding (Vaswani et al. 2017, 3.5).

    As in the paper (3.4) the embedding is multiplied by sqrt(dim) first: otherwise the sines, of amplitude 1, would
    drown it.

    theta: the slowest sine turns once in about 2 pi theta positions.
    """

    absolute = True
    scales_embeddings = True

    def __init__(self, given: Given, *, theta: float = 10000.0):
        super().__init__(given)
        if given.dim % 2:
            raise AblateError(f"model.dim={given.dim}: sinusoidal positions need an even width")
        self.scale = given.dim**0.5
        self.width, self.theta = given.dim, check.number("model.position.theta", theta, above=0)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        angle = positions.unsqueeze(-1) * _frequencies(self.width, self.theta, positions.device)
        return x * self.scale + torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).to(x.dtype)


@POSITIONS.register("rope")
class Rotary(Position):
    """Rotates each pair of channels (2i, 2i+1) by position * theta^(-2i/width) (Su et al. 2021).

    theta: the slowest pair turns once in about 2 pi theta positions.
    fraction: the share of a head's channels, counted from the first, that are rotated; the others carry no position
        (GPT-J, GPT-NeoX, Phi-2).
    """

    def __init__(self, given: Given, *, theta: float = 10000.0, fraction: float = 1.0):
        super().__init__(given)
        head_dim = given.head_dim
        check.number("model.position.fraction", fraction)
        if head_dim % 2:
            raise AblateError(f"model.attention.head_dim={head_dim}: rotary positions need an even head width")
        width = round(fraction * head_dim)
        if not 2 <= width <= head_dim or width % 2 or not math.isclose(width, fraction * head_dim, abs_tol=0.01):
            raise AblateError(
                f"model.position.fraction={fraction} of heads {head_dim} wide is {fraction * head_dim:g} channels: "
                f"expected an even number from 2 to {head_dim}"
            )
        self.head_dim, self.width, self.theta = head_dim, width, check.number("model.position.theta", theta, above=0)

    def frequencies(self, device: torch.device) -> Tensor:
        """Radians per position of each pair, `[width / 2]` fp32."""
        return _frequencies(self.width, self.theta, device)

    def rotation(self, positions: Tensor) -> Tensor:
        """Cosine and sine of each angle: `[B, T] -> [B, T, 1, width / 2]`, complex64. For torch.compile, which cannot
        fuse complex numbers, `[B, T, 1, width / 2, 2]` fp32."""
        angle = (positions.unsqueeze(-1) * self.frequencies(positions.device)).unsqueeze(2)
        if torch.compiler.is_compiling():
            return torch.stack((angle.cos(), angle.sin()), dim=-1)
        return torch.polar(torch.ones_like(angle), angle)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        turned = x if self.width == self.head_dim else x[..., : self.width]
        pairs = turned.float().view(*turned.shape[:-1], -1, 2)
        if rotation.is_complex():
            rotated = torch.view_as_real(torch.view_as_complex(pairs) * rotation)
        else:
            (a, b), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
            rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
        rotated = rotated.flatten(-2).to(x.dtype)
        return rotated if turned is x else torch.cat((rotated, x[..., self.width :]), dim=-1)


@POSITIONS.register("rope_linear")
class LinearRotary(Rotary):
    """Rotary positions divided by `factor`, so that a longer context spans the angles of a shorter one
    (position interpolation, Chen et al. 2023).

    factor: positions are divided by this.
    """

    def __init__(self, given: Given, *, theta: float = 10000.0, fraction: float = 1.0, factor: float = 4.0):
        super().__init__(given, theta=theta, fraction=fraction)
        self.factor = check.number("model.position.factor", factor, above=0)

    def frequencies(self, device: torch.device) -> Tensor:
        return super().frequencies(device) / self.factor


@POSITIONS.register("rope_llama3")
class Llama3Rotary(Rotary):
    """Rotary positions in which slow pairs turn slower, fast pairs as before, others in between (Llama 3.1, 2024).

    factor: how many times slower the slow pairs turn.
    low_freq_factor: a pair is slow if it turns at most this many times in the original context.
    high_freq_factor: a pair is fast if it turns at least this many times in the original context.
    original_context: the number of tokens in the context before it was extended.
    """

    def __init__(
        self,
        given: Given,
        *,
        theta: float = 500000.0,
        fraction: float = 1.0,
        factor: float = 8.0,
        low_freq_factor: float = 1.0,
        high_freq_factor: float = 4.0,
        original_context: int = 8192,
    ):
        super().__init__(given, theta=theta, fraction=fraction)
        if not 0 < low_freq_factor < high_freq_factor:
            raise AblateError(
                f"model.position.low_freq_factor={low_freq_factor}: expected a number above 0 and below "
                f"model.position.high_freq_factor={high_freq_factor}"
            )
        self.factor = check.number("model.position.factor", factor, above=0)
        self.original_context = check.whole("model.position.original_context", original_context, 1)
        self.low, self.high = low_freq_factor, high_freq_factor

    def frequencies(self, device: torch.device) -> Tensor:
        frequency = super().frequencies(device)
        turns = self.original_context * frequency / (2 * math.pi)
        quick = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequency * (quick + (1 - quick) / self.factor)


@POSITIONS.register("alibi")
class ALiBi(Position):
    """Scores fall with distance, with a different slope in each head (Press, Smith and Lewis 2022).

    If the number of heads H is a power of two, head h has the slope 2^(-8 (h+1) / H). Otherwise the heads have the
    slopes for the power of two below H, then every other slope for the power of two above, as in the authors' code.
    """

    biased = True

    def bias(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        power = 2 ** (self.heads.bit_length() - 1)
        exponent = torch.where(head < power, 8 * (head + 1), 4 * (2 * (head - power) + 1)) / power
        return -torch.exp2(-exponent.float()) * (query - key).abs()


def _frequencies(width: int, theta: float, device: torch.device) -> Tensor:
    """theta^(-2i/width) for i in 0 .. width/2 - 1, fp32."""
    return theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
