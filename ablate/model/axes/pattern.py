"""Patterns: which earlier positions of its document a position may attend to.

A pattern is one predicate, `allowed(query, key)`, on in-document indices; causality and the
document mask are composed around it. All else is derived from it: masks, FLOPs, how many keys a
cache must keep.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ablate.errors import AblateError
from ablate.model.slots import Blocks, Ring, Slots
from ablate.registry import Axis

PATTERNS = Axis("model.pattern")


class Pattern:
    """The contract: `allowed`, elementwise on integer tensors that broadcast, always for key <= query.

    `pairs` and `reach` follow from it by counting; a pattern overrides them only with a closed form. `slots` keeps
    all keys within `reach`; a pattern that sees only some of them for good says which. `band` cannot be counted, for it
    speaks of every length: a pattern that is a band says so, and is then open to quicker kernels.
    """

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        raise NotImplementedError

    def pairs(self, length: int) -> int:
        """How many (query, key) pairs a document of `length` tokens has, causality included."""
        return _counted(self, length)[0]

    def reach(self, length: int) -> int:
        """The most recent keys, the query's own included, that any query below `length` needs."""
        return _counted(self, length)[1]

    def slots(self, length: int) -> Slots:
        """Where a cache keeps the keys of a document of `length` tokens that later queries may see."""
        return Ring(self.reach(length))

    def band(self) -> float | None:
        """w, if every query attends to exactly its last w keys in a document of any length; `inf`: to all."""
        return None


def _counted(pattern: Pattern, length: int) -> tuple[int, int]:
    pairs, reach = _counts(pattern, 1 << (length - 1).bit_length())
    return pairs[length - 1], reach[length - 1]


@lru_cache(maxsize=64)
def _counts(pattern: Pattern, size: int) -> tuple[list[int], list[int]]:
    """Pairs and reach of every length up to `size`: one table serves a text that grows token by token."""
    keys, reach = [], []
    key = torch.arange(size)
    for query in torch.arange(size).split(1024):
        distance = query.unsqueeze(1) - key
        allowed = (distance >= 0) & pattern.allowed(query.unsqueeze(1), key)
        keys.append(allowed.sum(1))
        reach.append((distance * allowed).amax(1) + 1)
    return torch.cat(keys).cumsum(0).tolist(), torch.cat(reach).cummax(0).values.tolist()


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
        if self.window < 1:
            raise AblateError(f"model.pattern.window={self.window}: at least 1, the query's own key")

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
    """The last `stride` positions, and every `stride`-th before (Child et al. 2019).

    stride: how many positions are local, and how far apart the others are.
    part: null for both in one layer; `local` or `stride` for one of them, to take turns over the layers.
    """

    stride: int = 16
    part: Literal["local", "stride"] | None = None

    def __post_init__(self):
        _at_least_one("stride", self.stride)

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

    block: positions of a block.
    summary: how many positions at the end of a block all later ones see.
    part: null for both in one layer; `block` or `summary` for one of them, to take turns over the layers.
        In a `summary` layer a position sees itself as well: before the first summary there is nothing else.
    """

    block: int = 16
    summary: int = 4
    part: Literal["block", "summary"] | None = None

    def __post_init__(self):
        _at_least_one("block", self.block)
        if not 1 <= self.summary <= self.block:
            raise AblateError(
                f"model.pattern.summary={self.summary}: expected 1 to model.pattern.block={self.block} positions"
            )

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        block = query // self.block == key // self.block
        summary = key % self.block >= self.block - self.summary
        return {"block": block, "summary": summary | (query == key), None: block | summary}[self.part]

    def slots(self, length: int) -> Slots:
        if self.part == "block":
            return Ring(min(self.block, length))
        return Blocks(self.block, self.summary, alone=self.part == "summary")


def _at_least_one(option: str, value: int) -> None:
    if value < 1:
        raise AblateError(f"model.pattern.{option}={value}: at least 1")


@dataclass(frozen=True)
class Layout:
    """Where the queries and keys of one forward pass lie.

    query, key: in-document indices, `[B or 1, T]` and `[B or 1, S]`; a negative key is an empty slot.
    query_document, key_document: `[B, T]` and `[B, S]`, or None where a row is one document.
    square: the keys are the queries' own tokens, in order, in one document.
    newest: there is one query a row, and the keys are its own and those just before it, in any order.
    query_position, key_position: what the position component reads, in the shapes of query and key.
    max_documents: no row has more documents; None: unknown.
    """

    query: Tensor
    key: Tensor
    query_document: Tensor | None = None
    key_document: Tensor | None = None
    square: bool = False
    newest: bool = False
    query_position: Tensor | None = None
    key_position: Tensor | None = None
    max_documents: int | None = None


def sees(pattern: Pattern, query: Tensor, key: Tensor) -> Tensor:
    """The pattern with causality, elementwise on in-document indices of one document."""
    return (key >= 0) & (key <= query) & pattern.allowed(query, key)


def dense_mask(pattern: Pattern, layout: Layout) -> Tensor:
    """`[B or 1, 1, T, S]`, True where a query may attend to a key."""
    mask = sees(pattern, layout.query.unsqueeze(-1), layout.key.unsqueeze(-2))
    if layout.query_document is not None:
        mask = mask & (layout.query_document.unsqueeze(-1) == layout.key_document.unsqueeze(-2))
    return mask.unsqueeze(1)


def document_runs(documents: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, T]` document ids -> (which run of equal ids a token is in, its index in that run).

    A document is a run: an id that comes again later in the row names another document.
    """
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return starts.cumsum(1), place - (place * starts).cummax(dim=1).values
