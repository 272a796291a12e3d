"""The KV cache: preallocated, one buffer a layer, with slots for what the layer's pattern can still see.

Rows advance each by its own number of tokens (ragged batches): padding, and tokens that later ones of the
same pass write over, land in one spare place behind the last row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ablate.errors import AblateError
from ablate.model.pattern import Layout
from ablate.model.slots import Slots

BEYOND = 2**40  # the index of a key that no query may see


@dataclass(frozen=True)
class LayerShape:
    """What one layer caches: heads of keys and values, their width, and which of `length` tokens."""

    kv_heads: int
    head_dim: int
    slots: Slots
    length: int

    @property
    def size(self) -> int:
        """How many tokens it keeps."""
        return self.slots.used(self.length)


class _Buffer:
    """`[B, G, size, width]`, and the spare place."""

    def __init__(self, batch: int, shape: LayerShape, width: int, dtype: torch.dtype, device: torch.device):
        self._shape = (batch, shape.kv_heads, shape.size, width)
        self._flat = torch.zeros(batch * shape.kv_heads * shape.size + 1, width, dtype=dtype, device=device)

    @property
    def held(self) -> Tensor:
        return self._flat[:-1].view(self._shape)

    def write(self, place: Tensor, new: Tensor) -> None:
        """`new` `[B, G, T, width]` to its places `[B * G * T]`."""
        self._flat.index_copy_(0, place, new.reshape(-1, new.shape[-1]))


class Cache:
    """Keys and values of the tokens seen so far. `Decoder.new_cache` makes one; `forward` advances it.

    It is for inference: no gradient flows through what it holds.

    length: tokens that each row holds, `[B]`, on the device. It stays the same tensor for good.
    filled: tokens that the longest row may hold, known without asking the device.
    span: None: a pass reads the slots in use, so that its shapes change from one to the next. A number, at least that
        of the tokens held after the pass: passes of one token read as many slots as so many tokens use, and masks
        hide those that are empty. All of them then do the same work at the same places, and can be captured; they
        leave `filled` to whoever set `span`.
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
        self.length = torch.zeros(batch, dtype=torch.int64, device=device)
        self.filled, self.span = 0, None
        self.ragged = False
        self._buffers = [tuple(_Buffer(batch, s, s.head_dim, dtype, device) for _ in "kv") for s in shapes]
        self._itemsize = dtype.itemsize
        self._positions = {}
        if keep_positions:
            one = {s.slots: LayerShape(1, 1, s.slots, s.length) for s in shapes}
            self._positions = {slots: _Buffer(batch, shape, 1, torch.int64, device) for slots, shape in one.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the slots for keys and values."""
        return sum(2 * self.batch * s.size * s.kv_heads * s.head_dim * self._itemsize for s in self.shapes)

    def begin(self, tokens: int, documents: Tensor | None) -> "Pass":
        """Opens a forward pass of `tokens` tokens a row; `documents` `[B, T]` marks padding by -1.

        Raises:
            AblateError: more tokens than the cache holds, several documents in a row, or padding
                that is not at the end of its row.
        """
        if self.span is None and self.filled + tokens > self.max_length:
            raise AblateError(
                f"the cache holds {self.max_length} tokens a row: {self.filled} are there, {tokens} more do not fit; "
                "make it longer with model.new_cache(batch, max_length)"
            )
        valid = None if documents is None else self._padding_checked(documents)
        return Pass(self, tokens, valid)

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


class Pass:
    """One forward pass with a cache.

    index: which token of its row each new one is, `[B, T]`.
    """

    def __init__(self, cache: Cache, tokens: int, valid: Tensor | None):
        self.cache, self._tokens, self._valid = cache, tokens, valid
        offset = torch.arange(tokens, device=cache.length.device)
        self.index = cache.length.unsqueeze(1) + offset
        self._length = cache.length + (tokens if valid is None else valid.sum(1))  # of each row after it
        self._single = cache.span is not None
        self._first = not self._single and cache.filled == 0
        self._after = cache.span if self._single else cache.filled + tokens
        self._slots = {shape.slots: self._slots_for(shape) for shape in cache.shapes}
        self._places: dict[tuple[Slots, int], Tensor] = {}

    def _slots_for(self, shape: LayerShape) -> Tensor:
        """Where each token is written, `[B, T]`; `shape.size`: nowhere, for it is padding or written over."""
        slots = shape.slots.slot(self.index)
        if not self._reads_after_writing(shape.slots):
            stays = shape.slots.held(self._length, shape.size).gather(1, slots.clamp_max(shape.size - 1))
            slots = slots.where(stays == self.index, shape.size)
        return slots if self._valid is None else slots.where(self._valid, shape.size)

    def _reads_after_writing(self, slots: Slots) -> bool:
        """Whether nothing that this pass needs is written over by its own tokens."""
        return self._tokens == 1 or slots.used(self._after) == self._after

    def _place(self, shape: LayerShape) -> Tensor:
        """As `_slots_for`, in the buffer: `[B * G * T]`."""
        key = shape.slots, shape.kv_heads
        if key not in self._places:
            slots = self._slots[shape.slots].unsqueeze(1)
            rows = self.cache.batch * shape.kv_heads
            first = torch.arange(0, rows * shape.size, shape.size, device=slots.device)
            place = first.view(self.cache.batch, -1, 1) + slots
            if self._valid is not None or not self._reads_after_writing(shape.slots):
                place = place.where(slots < shape.size, rows * shape.size)
            self._places[key] = place.flatten()
        return self._places[key]

    def layouts(self, positions: Tensor) -> list[Layout]:
        """Where queries and keys lie, layer by layer; `positions` `[B or 1, T]` are the queries'."""
        found = {}
        for shape in self.cache.shapes:
            if shape.slots not in found:
                found[shape.slots] = self._layout(shape, positions.expand(self.cache.batch, -1))
        return [found[shape.slots] for shape in self.cache.shapes]

    def _layout(self, shape: LayerShape, positions: Tensor) -> Layout:
        placed = {}
        if self.cache._positions:
            one = LayerShape(1, 1, shape.slots, shape.length)
            key_position = self._extend(self.cache._positions[shape.slots], positions.unsqueeze(-1).unsqueeze(1), one)
            placed = {"query_position": positions, "key_position": key_position.flatten(1)}
        if self._first:
            place = torch.arange(self._tokens, device=self.index.device).unsqueeze(0)
            return Layout(place, place, square=True, **placed)
        used = shape.slots.used(self._after)
        if used == self._after:
            key = torch.arange(used, device=self.index.device).unsqueeze(0)
        elif self._tokens == 1:
            key = shape.slots.held(self._length, used)
        else:
            new = self.index if self._valid is None else self.index.where(self._valid, BEYOND)
            key = torch.cat((shape.slots.held(self.cache.length, shape.slots.used(self.cache.filled)), new), dim=1)
        newest = self._tokens == 1 and not self._single and not self.cache.ragged
        return Layout(self.index, key, newest=newest, **placed)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the pass's keys and values `[B, T, G, d]`; returns all that its queries may see, `[B, S, G, d]`."""
        shape, buffers = self.cache.shapes[layer], self.cache._buffers[layer]
        new = (part.detach().transpose(1, 2) for part in (key, value))
        return tuple(self._extend(b, n, shape).transpose(1, 2) for b, n in zip(buffers, new, strict=True))

    def _extend(self, buffer: _Buffer, new: Tensor, shape: LayerShape) -> Tensor:
        """Writes `new` `[B, G, T, width]` into its slots; returns what is held and what is new, `[B, G, S, width]`."""
        everything = new = new.to(buffer.held.dtype)
        reads_after = self._reads_after_writing(shape.slots)
        if not self._first and not reads_after:
            held = buffer.held[:, :, : shape.slots.used(self.cache.filled)]
            everything = torch.cat((held, new), dim=2)
        buffer.write(self._place(shape), new)
        if not self._first and reads_after:
            everything = buffer.held[:, :, : shape.slots.used(self._after)]
        return everything

    def close(self) -> None:
        """The cache holds the tokens of the pass from now on."""
        self.cache.length.copy_(self._length)
        if not self._single:
            self.cache.filled += self._tokens
