"""The KV cache: preallocated, one buffer a layer, as long as the layer's pattern can reach.

A layer with reach S keeps token n of its row in slot n mod S, so that a local layer's buffer
rolls. Rows advance each by its own number of tokens (ragged batches): padding, and tokens that
later ones of the same call overwrite, land in one spare slot behind the last row.

    reach 4, 6 tokens seen:   slot   0   1   2   3
                              token  4   5   2   3
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ablate.errors import AblateError
from ablate.model.pattern import Layout

BEYOND = 2**40  # the index of a key that no query may see


@dataclass(frozen=True)
class LayerShape:
    """What one layer caches: heads of keys and values, their width, and how many tokens."""

    kv_heads: int
    head_dim: int
    size: int


class Cache:
    """Keys and values of the tokens seen so far. `Decoder.new_cache` makes one; `forward` advances it.

    It is for inference: no gradient flows through what it holds.
    """

    def __init__(
        self,
        shapes: list[LayerShape],
        batch: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        keep_positions: bool = False,
    ):
        self.shapes, self.batch, self.max_length = shapes, batch, max_length
        self.length = torch.zeros(batch, dtype=torch.int64, device=device)  # tokens held, `[B]`
        self.filled = 0  # tokens that the longest row may hold, known without asking the device
        self.ragged = False
        self._buffers = [
            tuple(torch.zeros(batch * s.size + 1, s.kv_heads, s.head_dim, dtype=dtype, device=device) for _ in "kv")
            for s in shapes
        ]
        self._positions = {
            s.size: torch.zeros(batch * s.size + 1, dtype=torch.int64, device=device) for s in shapes if keep_positions
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the slots for keys and values."""
        return sum(
            2 * self.batch * s.size * s.kv_heads * s.head_dim * self._buffers[0][0].element_size() for s in self.shapes
        )

    def begin(self, tokens: int, documents: Tensor | None) -> None:
        """Opens a forward pass of `tokens` tokens a row; `documents` `[B, T]` marks padding by -1.

        Raises:
            AblateError: more tokens than the cache holds, several documents in a row, or padding
                that is not at the end of its row.
        """
        if self.filled + tokens > self.max_length:
            raise AblateError(
                f"the cache holds {self.max_length} tokens a row: {self.filled} are there, {tokens} more do not fit; "
                "make it longer with model.new_cache(batch, max_length)"
            )
        offset = torch.arange(tokens, device=self.length.device)
        self.index = self.length.unsqueeze(1) + offset  # `[B, T]`
        self._valid = None
        if documents is not None:
            self._valid = self._padding_checked(documents)
        added = tokens if self._valid is None else self._valid.sum(1)
        self._new_length = self.length + added
        self._tokens = tokens
        self._slots = {size: self._slots_for(size) for size in {s.size for s in self.shapes}}

    def _padding_checked(self, documents: Tensor) -> Tensor | None:
        """Which tokens are real, `[B, T]`, or None if all are."""
        valid = documents >= 0
        first = documents[:, :1]
        one_document = ((documents == first) | ~valid).all()
        padding_last = (valid[:, 1:] <= valid[:, :-1]).all()
        one_document, padding_last, all_real = torch.stack((one_document, padding_last, valid.all())).tolist()
        if not one_document:
            raise AblateError("a cache holds one document a row: pass documents=None, or 0 and, for padding, -1")
        if not padding_last:
            raise AblateError("with a cache, padding (documents = -1) comes last in a row")
        self.ragged |= not all_real
        return None if all_real else valid

    def _slots_for(self, size: int) -> Tensor:
        """Where each token of the pass is written, `[B * T]`."""
        rows = torch.arange(self.batch, device=self.length.device).unsqueeze(1)
        slots = rows * size + self.index % size
        spare = self.batch * size
        if self._tokens > 1:
            slots = slots.where(self.index >= self._new_length.unsqueeze(1) - size, spare)
        if self._valid is not None:
            slots = slots.where(self._valid, spare)
        return slots.flatten()

    def _writes_first(self, size: int) -> bool:
        """Whether nothing that this pass needs is overwritten by its own tokens."""
        return self._tokens == 1 or self.filled + self._tokens <= size

    def layouts(self, positions: Tensor) -> list[Layout]:
        """Where queries and keys lie in this pass, layer by layer; `positions` `[B or 1, T]` are the queries'."""
        by_size = {size: self._layout(size, positions.expand(self.batch, -1)) for size in self._slots}
        return [by_size[shape.size] for shape in self.shapes]

    def _layout(self, size: int, positions: Tensor) -> Layout:
        placed = {}
        if self._positions:
            key_position = self._extend(self._positions[size], positions, size)
            placed = {"query_position": positions, "key_position": key_position}
        if self.filled == 0:
            place = torch.arange(self._tokens, device=self.length.device).unsqueeze(0)
            return Layout(place, place, square=True, **placed)
        after = self.filled + self._tokens
        if after <= size:
            key = torch.arange(after, device=self.length.device).unsqueeze(0)
        elif self._tokens == 1:
            key = self._held(self._new_length, size, size)
        else:
            new = self.index if self._valid is None else self.index.where(self._valid, BEYOND)
            key = torch.cat((self._held(self.length, size, min(self.filled, size)), new), dim=1)
        last = self.max_length if self._tokens == 1 and not self.ragged else 0
        return Layout(self.index, key, last=last, **placed)

    def _held(self, length: Tensor, size: int, slots: int) -> Tensor:
        """The token that each slot holds once rows are `length` long, `[B, slots]`; negative: none."""
        newest = length.unsqueeze(1) - 1
        return newest - (newest - torch.arange(slots, device=length.device)) % size

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds this pass's keys and values `[B, T, G, d]`; returns all that its queries may see, `[B, S, G, d]`."""
        size = self.shapes[layer].size
        keys, values = self._buffers[layer]
        return self._extend(keys, key, size), self._extend(values, value, size)

    def _extend(self, buffer: Tensor, new: Tensor, size: int) -> Tensor:
        """Writes `new` `[B, T, ...]` into its slots; returns what is held and what is new, `[B, S, ...]`."""
        held = buffer[:-1].unflatten(0, (self.batch, size))
        new = new.detach().to(buffer.dtype)
        everything = new
        if self.filled and not self._writes_first(size):
            everything = torch.cat((held[:, : min(self.filled, size)], new), dim=1)
        buffer.index_copy_(0, self._slots[size], new.flatten(0, 1))
        if self.filled and self._writes_first(size):
            everything = held[:, : min(self.filled + self._tokens, size)]
        return everything

    def advance(self) -> None:
        """Closes the forward pass."""
        self.length = self._new_length
        self.filled += self._tokens
