"""Which tokens a query may attend to: the predicate of a pattern, and what every mask is derived from.

A pattern is one predicate, `allowed(query, key)`, on positions within a document. Causality and the document mask are
composed around it here. Dense masks, block masks, windows, FLOPs, cache sizes and pictures all follow from these.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ablate.model.slots import Ring, Slots


class Pattern:
    """The contract: a pattern defines `allowed`. The other methods follow from it by counting.

    A pattern overrides `pairs` and `reach` only with a closed form that is quicker, and `slots` only where the cache
    needs to keep less than all keys within `reach`.
    """

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query may attend to a key: elementwise on integers that broadcast. Only key <= query counts."""
        raise NotImplementedError

    def pairs(self, length: int) -> int:
        """The number of allowed (query, key) pairs in a document of `length` tokens, causality included."""
        return _counted(self, length)[0]

    def reach(self, length: int) -> int:
        """The number of latest keys, its own included, that the query looking back furthest needs."""
        return _counted(self, length)[1]

    def slots(self, length: int) -> Slots:
        """Where a cache keeps the keys of a document of `length` tokens that later queries may see."""
        return Ring(self.reach(length))

    def band(self) -> float | None:
        """w, if every query attends to exactly its last w keys; `inf`, if to all of them; None otherwise.

        This is a claim about documents of all lengths, so a pattern must declare it: it cannot be counted. Kernels for
        windows need it.
        """
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


@dataclass(frozen=True)
class Layout:
    """The positions and documents of the queries and keys in one forward pass.

    query, key: positions within their document, `[B or 1, T]` and `[B or 1, S]`; a negative key is an empty slot.
    query_document, key_document: `[B, T]` and `[B, S]`, or None where each row is one document.
    square: the keys are the queries' own tokens, in order, and each row is one document.
    newest: each row has one query, and the keys are its own and those just before it, in any order.
    query_position, key_position: what the position component reads, in the shapes of query and key.
    max_documents: an upper bound on the documents in a row; None: unknown.
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
    """`[B, T]` document ids -> the number of each token's run of equal ids, and its position in that run.

    A run is a document: an id that appears again later in the row is another document.
    """
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return starts.cumsum(1), place - (place * starts).cummax(dim=1).values
