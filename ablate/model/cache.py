"""The KV cache: preallocated, one buffer for each layer, with slots for the tokens that its pattern can still see.

Each row advances by its own number of tokens (ragged batches). Padding, and tokens that later tokens of the same pass
overwrite, are written to one unused slot behind the last row.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ablate.errors import AblateError
from ablate.model.masks import Layout
from ablate.model.slots import Slots

BEYOND = 2**40  # the position of a key that no query may see


@dataclass(frozen=True)
class LayerShape:
    """What one layer caches: heads of keys and values, their width, and slots for a text of `length` tokens."""

    kv_heads: int
    head_dim: int
    slots: Slots
    length: int

    @property
    def size(self) -> int:
        """The number of tokens that the layer keeps."""
        return self.slots.used(self.length)


class _Buffer:
    """Keys or values, `[B, G, size, width]`, and the unused slot."""

    def __init__(self, batch: int, shape: LayerShape, width: int, dtype: torch.dtype, device: torch.device):
        self._shape = (batch, shape.kv_heads, shape.size, width)
        self._flat = torch.zeros(batch * shape.kv_heads * shape.size + 1, width, dtype=dtype, device=device)

    def held(self) -> Tensor:
        return self._flat[:-1].view(self._shape)

    @property
    def dtype(self) -> torch.dtype:
        return self._flat.dtype

    def write(self, places: Tensor, new: Tensor) -> None:
        """Writes `new` `[B, G, T, width]` to the places `[B * G * T]` in the flat buffer."""
        self._flat.index_copy_(0, places, new.reshape(-1, new.shape[-1]))


class Cache:
    """Keys and values of the tokens seen so far. `Decoder.new_cache` makes one; `forward` advances it.

    It is for inference: no gradient flows through it.

    length: the number of tokens in each row, `[B]`, on the device; updated in place.
    filled: an upper bound on the tokens in a row, known on the host.
    span: None: a pass reads only the slots in use; shapes change from pass to pass. n: passes of one token always read
        the slots that n tokens use, masking empty ones, so that every pass has the same shapes and can be captured in a
        CUDA graph; the caller then updates `filled`. n is at least the number of tokens after the pass.
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
        self.clear()
        self.buffers = [tuple(_Buffer(batch, s, s.head_dim, dtype, device) for _ in "kv") for s in shapes]
        self.dtype = dtype
        self.positions = {}
        if keep_positions:
            one = {s.slots: LayerShape(1, 1, s.slots, s.length) for s in shapes}
            self.positions = {slots: _Buffer(batch, shape, 1, torch.int64, device) for slots, shape in one.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all slots for keys and values."""
        return sum(2 * self.batch * s.size * s.kv_heads * s.head_dim * self.dtype.itemsize for s in self.shapes)

    def clear(self) -> None:
        """Forgets every token."""
        self.length.zero_()
        self.filled, self.span = 0, None
        self.ragged = False

    def begin(self, tokens: int, documents: Tensor | None) -> "Pass":
        """Opens a forward pass of `tokens` tokens a row; `documents` `[B, T]` marks padding by -1.

        Raises:
            AblateError: more tokens than the cache holds, several documents in a row, or padding that is not at the end
                of its row.
        """
        if self.span is None and self.filled + tokens > self.max_length:
            raise AblateError(
                f"the cache holds {self.max_length} tokens a row: {self.filled} are there, {tokens} more do not fit; "
                "make it longer with model.new_cache(batch, max_length)"
            )
        valid = None if documents is None else self._padding_checked(documents)
        return Pass(self, tokens, valid)

    def _padding_checked(self, documents: Tensor) -> Tensor | None:
        """Which tokens are real, `[B, T]`; None if all are."""
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

    index: the position of each new token in its row, `[B, T]`.
    """

    def __init__(self, cache: Cache, tokens: int, valid: Tensor | None):
        self.cache, self._tokens, self._valid = cache, tokens, valid
        offset = torch.arange(tokens, device=cache.length.device)
        self.index = cache.length.unsqueeze(1) + offset
        self._length = cache.length + (tokens if valid is None else valid.sum(1))  # of each row after the pass
        self._fixed = cache.span is not None
        self._first = not self._fixed and cache.filled == 0
        self._after = cache.span if self._fixed else cache.filled + tokens
        self._parts: dict[LayerShape, _Part] = {}

    def _part(self, shape: LayerShape) -> "_Part":
        if shape not in self._parts:
            self._parts[shape] = _Part(self, shape)
        return self._parts[shape]

    def layouts(self, positions: Tensor) -> list[Layout]:
        """The layout of queries and keys in each layer; `positions` `[B or 1, T]` are the queries'."""
        layouts = {}
        for shape in self.cache.shapes:
            if shape.slots not in layouts:
                layouts[shape.slots] = self._layout(shape, positions.expand(self.cache.batch, -1))
        return [layouts[shape.slots] for shape in self.cache.shapes]

    def _layout(self, shape: LayerShape, positions: Tensor) -> Layout:
        placed = {}
        if self.cache.positions:
            buffer, one = self.cache.positions[shape.slots], replace(shape, kv_heads=1, head_dim=1)
            key_position = self._part(one).extend(buffer, positions.view(self.cache.batch, 1, -1, 1))
            placed = {"query_position": positions, "key_position": key_position.flatten(1)}
        if self._first:
            place = torch.arange(self._tokens, device=self.index.device).unsqueeze(0)
            return Layout(place, place, square=True, **placed)
        newest = self._tokens == 1 and not self._fixed and not self.cache.ragged
        return Layout(self.index, self._part(shape).keys(), newest=newest, **placed)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of a layer `[B, T, G, d]`; returns all that its queries may see, `[B, S, G, d]`."""
        part, (keys, values) = self._part(self.cache.shapes[layer]), self.cache.buffers[layer]
        key, value = part.extend(keys, key.transpose(1, 2)), part.extend(values, value.transpose(1, 2))
        return key.transpose(1, 2), value.transpose(1, 2)

    def close(self) -> None:
        """Counts the tokens of the pass as held."""
        self.cache.length.copy_(self._length)
        if not self._fixed:
            self.cache.filled += self._tokens


class _Part:
    """What a pass does in all layers of one shape.

    First pass: the keys are its own tokens. Later: the buffer after writing; where writing would overwrite keys that
    this pass still reads, the buffer as it was, followed by the new tokens.
    """

    def __init__(self, whole: Pass, shape: LayerShape):
        self._whole, self._slots = whole, shape.slots
        self._read = self._slots.used(whole._after)
        self._in_place = whole._tokens == 1 or self._read == whole._after
        if not self._in_place:
            self._read = self._slots.used(whole.cache.filled)
        self._places = self._find_places(shape)

    def _find_places(self, shape: LayerShape) -> Tensor:
        """The place in the buffer to which each token is written, `[B * G * T]`."""
        whole, rows = self._whole, self._whole.cache.batch * shape.kv_heads
        slots, written = self._slots.slot(whole.index), whole._valid
        if not self._in_place:
            held = self._slots.held(whole._length, shape.size).gather(1, slots.clamp_max(shape.size - 1))
            written = held == whole.index if written is None else written & (held == whole.index)
        first = torch.arange(0, rows * shape.size, shape.size, device=slots.device).view(-1, shape.kv_heads, 1)
        places = first + slots.unsqueeze(1)
        if written is not None:
            places = places.where(written.unsqueeze(1), rows * shape.size)
        return places.flatten()

    def keys(self) -> Tensor:
        """The position of each key in its row, `[B or 1, S]`; an empty slot has one that no query may see."""
        whole = self._whole
        if self._read == whole._after:
            return torch.arange(self._read, device=whole.index.device).unsqueeze(0)
        if self._in_place:
            return self._slots.held(whole._length, self._read)
        new = whole.index if whole._valid is None else whole.index.where(whole._valid, BEYOND)
        return torch.cat((self._slots.held(whole.cache.length, self._read), new), dim=1)

    def extend(self, buffer: _Buffer, new: Tensor) -> Tensor:
        """Writes `new` `[B, G, T, width]`; returns all keys (or values), `[B, G, S, width]`."""
        new = new.detach().to(buffer.dtype)
        if not self._in_place and not self._whole._first:
            everything = torch.cat((buffer.held()[:, :, : self._read], new), dim=2)
            buffer.write(self._places, new)
            return everything
        buffer.write(self._places, new)
        return new if self._whole._first else buffer.held()[:, :, : self._read]
