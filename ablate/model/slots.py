"""Slots: where the cache of a layer keeps the tokens that later queries may still see. It forgets the others.

A rule maps the position of a token in its document to a slot. When a slot is written again, no later query may see the
token that was there.

    Ring(size=4), 6 tokens seen:                     slot   0   1   2   3
                                                     token  4   5   2   3

    Blocks(block=4, summary=1), 6 tokens seen:       slot   0   1   2 | 3
                                                     token  4   5   2 | 3     the last of each block is kept for good
"""

from dataclasses import dataclass

import torch
from torch import Tensor


class Slots:
    """The contract. Tokens fill the slots in order: until a slot is written again, token i is in slot i."""

    def used(self, tokens: int) -> int:
        """The number of slots, from the first, in use once a row has seen `tokens` tokens."""
        raise NotImplementedError

    def slot(self, index: Tensor) -> Tensor:
        """Position of a token -> its slot, elementwise."""
        raise NotImplementedError

    def held(self, length: Tensor, slots: int) -> Tensor:
        """The token in each of the first `slots` slots, `[B, slots]`, for rows that have seen `length` `[B]` tokens.

        Negative: the slot is empty.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Ring(Slots):
    """The last `size` tokens."""

    size: int

    def used(self, tokens: int) -> int:
        return min(tokens, self.size)

    def slot(self, index: Tensor) -> Tensor:
        return index % self.size

    def held(self, length: Tensor, slots: int) -> Tensor:
        newest = length.unsqueeze(1) - 1
        return newest - (newest - torch.arange(slots, device=length.device)) % self.size


@dataclass(frozen=True)
class Blocks(Slots):
    """Keeps the last `summary` tokens of each block for good, the rest until the block ends.

    alone: only its own query sees a token of the rest, so they share one slot.
    """

    block: int
    summary: int
    alone: bool = False

    @property
    def _others(self) -> int:
        """The number of tokens in a block that are not kept for good."""
        return self.block - self.summary

    @property
    def _recent(self) -> int:
        """The number of slots for them."""
        return min(self._others, 1) if self.alone else self._others

    def used(self, tokens: int) -> int:
        blocks, rest = divmod(tokens, self.block)
        return min(tokens, self._recent) + blocks * self.summary + max(0, rest - self._others)

    def slot(self, index: Tensor) -> Tensor:
        place = index % self.block
        kept = self._recent + index // self.block * self.summary + place - self._others
        return torch.where(place < self._others, place.clamp_max(max(self._recent - 1, 0)), kept)

    def held(self, length: Tensor, slots: int) -> Tensor:
        slot, newest = torch.arange(slots, device=length.device), length.unsqueeze(1) - 1
        kept = slot - self._recent
        kept = kept // self.summary * self.block + self._others + kept % self.summary
        kept = kept.where(kept <= newest, -1)
        if self.alone:
            recent = newest - (newest % self.block - self._others + 1).clamp_min(0)
        else:
            recent = newest - (newest - slot) % self.block
        return torch.where(slot < self._recent, recent, kept)
