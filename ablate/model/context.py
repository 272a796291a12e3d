"""What the layers share in one forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ablate.model.cache import Pass
from ablate.model.kernels.kernel import Kernel, Scores


class Record:
    """Auxiliary losses and statistics of one forward pass. A caller who wants them passes one in.

    Not a dataclass: if a block is given a dataclass with gradients in it, FSDP copies it.
    """

    def __init__(self) -> None:
        self.losses: dict[str, Tensor] = {}  # name -> summed over layers, to be added to the loss
        self.statistics: dict[str, dict[int, Tensor]] = {}  # name -> layer -> tensor


@dataclass
class ForwardContext:
    """One layer's view of one forward pass: how to attend, and where to put auxiliary losses.

    rotate: rotates queries or keys `[B, T, H, d]` by their positions, into the same shape.
    mask: what `kernel.make_mask` returned for this pass.
    cached: the pass through the cache; None: there is no cache.
    real: `[B, T]`, False on padding; None: all tokens are real.
    """

    layer: int
    scores: Scores
    rotate: Callable[[Tensor], Tensor]
    kernel: Kernel
    mask: Any
    cached: Pass | None = None
    real: Tensor | None = None
    record: Record | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries `[B, T, H, d]`, keys and values `[B, T, G, d]` of this pass -> `[B, T, H, d]`."""
        query, key = self.rotate(query), self.rotate(key)
        if self.cached is not None:
            key, value = self.cached.extend(self.layer, key, value)
        return self.kernel(query, key, value, self.mask, self.scores)

    def add_loss(self, name: str, loss: Tensor) -> None:
        """Adds a scalar to the training loss, unscaled."""
        if self.record is not None:
            self.record.losses[name] = self.record.losses.get(name, 0.0) + loss

    def note(self, name: str, statistic: Tensor) -> None:
        """Keeps a statistic of this layer for logs and pictures, detached."""
        if self.record is not None:
            self.record.statistics.setdefault(name, {})[self.layer] = statistic.detach()
