"""Patterns: which earlier positions of its document a position may attend to (`ablate.model.masks.Pattern`)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ablate import check
from ablate.model.masks import Pattern
from ablate.model.slots import Blocks, Ring, Slots
from ablate.registry import Axis

PATTERNS = Axis("model.pattern")


@PATTERNS.register("full")
@dataclass(frozen=True)
class Full(Pattern):
    """Every earlier position (Vaswani et al. 2017)."""

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.ones_like(query - key, dtype=torch.bool)

    def pairs(self, length: int) -> int:
        return length * (length + 1) // 2

    def reach(self, length: int) -> int:
        return length

    def band(self) -> float:
        return math.inf


@PATTERNS.register("local")
@dataclass(frozen=True, kw_only=True)
class Local(Pattern):
    """The last `window` positions, the query's own included (Beltagy et al. 2020; Mistral 7B, 2023).

    window: how many keys a query sees.
    """

    window: int = 128

    def __post_init__(self):
        check.whole("model.pattern.window", self.window, 1, hint="the query's own key counts")

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        return query - key < self.window

    def pairs(self, length: int) -> int:
        window = self.reach(length)
        return window * (window + 1) // 2 + (length - window) * window

    def reach(self, length: int) -> int:
        return min(self.window, length)

    def band(self) -> int:
        return self.window


@PATTERNS.register("strided")
@dataclass(frozen=True, kw_only=True)
class Strided(Pattern):
    """The last `stride` positions, and every `stride`-th one back (Child et al. 2019).

    stride: how many positions are local, and how far apart the others are.
    part: null for both in one layer; `local` or `stride` for one of them, so that layers can alternate.
    """

    stride: int = 16
    part: Literal["local", "stride"] | None = None

    def __post_init__(self):
        check.whole("model.pattern.stride", self.stride, 1)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        local, stride = distance < self.stride, distance % self.stride == 0
        return {"local": local, "stride": stride, None: local | stride}[self.part]

    def band(self) -> int | None:
        return self.stride if self.part == "local" else None


@PATTERNS.register("fixed")
@dataclass(frozen=True, kw_only=True)
class Fixed(Pattern):
    """The query's own block, and the last `summary` positions of every block (Child et al. 2019).

    block: the number of positions in a block.
    summary: the number of positions at the end of each block that all later positions see.
    part: null for both in one layer; `block` or `summary` for one of them, so that layers can alternate.
        In a `summary` layer a position also sees itself: before the first summary it would see nothing.
    """

    block: int = 16
    summary: int = 4
    part: Literal["block", "summary"] | None = None

    def __post_init__(self):
        check.whole("model.pattern.block", self.block, 1)
        check.whole("model.pattern.summary", self.summary, 1, self.block, hint=f"model.pattern.block={self.block}")

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        block = query // self.block == key // self.block
        summary = key % self.block >= self.block - self.summary
        return {"block": block, "summary": summary | (query == key), None: block | summary}[self.part]

    def slots(self, length: int) -> Slots:
        if self.part == "block":
            return Ring(min(self.block, length))
        return Blocks(self.block, self.summary, alone=self.part == "summary")
