"""Slots: where a layer's cache keeps the tokens that later queries may still see, and forgets the others.

A rule maps a token's index in its document to a slot. A token whose slot is written again must be out of
sight of every query from then on. `used` and `held` follow from the rule.

    Ring(size=4), 6 tokens seen:                     slot   0   1   2   3
                                                     token  4   5   2   3

    Blocks(block=4, summary=1), 6 tokens seen:       slot   0   1   2 | 3
                                                     token  4   5   2 | 3     of a block the last is kept for good
"""

from dataclasses import dataclass

import torch
from torch import Tensor


class Slots:
    """The contract. Tokens fill the slots from the first on: while each has one of its own, token i is in slot i."""

    def used(self, tokens: int) -> int:
        """How many slots, the first ones, hold something once a row has seen `tokens` tokens."""
        raise NotImplementedError

    def slot(self, index: Tensor) -> Tensor:
        """Index of a token -> its slot, elementwise."""
        raise NotImplementedError

    def held(self, length: Tensor, slots: int) -> Tensor:
        """The token in each of the first `slots` slots of rows that have seen `length` `[B]`: `[B, slots]`.

        Negative: none.
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
    """The last `summary` tokens of every block of `block`, and others while their block lasts.

    alone: the others are seen by themselves alone, so that one slot does for all of them.
    """

    block: int
    summary: int
    alone: bool = False

    @property
    def _others(self) -> int:
        """Of a block, how many tokens are not kept for good."""
        return self.block - self.summary

    @property
    def _recent(self) -> int:
        """Slots for those."""
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
