"""Pictures of components, drawn by running them."""

import torch
from torch import Tensor

from ablate.model.axes.attention import Attention
from ablate.model.axes.position import Position
from ablate.model.masks import Layout, Pattern, dense_mask, document_runs

SEEN, UNSEEN = "█", "·"
SHADES = " ░▒▓█"


def mask_picture(pattern: Pattern, length: int, documents: Tensor | None = None) -> str:
    """Which keys each query sees: one line a query, one column a key.

    documents: `[length]` ids, as a model takes them; None: one document.
    """
    if documents is None:
        documents = torch.zeros(length, dtype=torch.int64)
    run, index = document_runs(documents.unsqueeze(0))
    mask = dense_mask(pattern, Layout(index, index, run, run))[0, 0]
    return "\n".join("".join(SEEN if seen else UNSEEN for seen in row) for row in mask.tolist())


def heads_picture(attention: Attention) -> str:
    """The key and value head that each query head reads."""
    share = attention.heads // attention.kv_heads
    width = len(str(attention.heads - 1)) + 1
    rows = {"query": range(attention.heads), "key, value": [head // share for head in range(attention.heads)]}
    return "\n".join(f"{name:<11}" + "".join(f"{head:>{width}}" for head in row) for name, row in rows.items())


def shaded(values: Tensor) -> str:
    """A matrix in shades: its smallest value is blank, its largest full."""
    low, high = values.min(), values.max()
    steps = ((values - low) / (high - low) * (len(SHADES) - 1)).round().long()
    return "\n".join("".join(SHADES[step] for step in row) for row in steps.tolist())


def rotation_picture(position: Position, positions: int = 48) -> str:
    """The cosine of the rotation of each pair of channels: one line a pair, one column a position."""
    rotation = position.rotation(torch.arange(positions).unsqueeze(0))
    return shaded(rotation[0, :, 0].real.t())


def embedding_picture(position: Position, dim: int, positions: int = 48) -> str:
    """What is added to the embeddings: one line a channel, one column a position."""
    added = position.embed(torch.zeros(1, positions, dim), torch.arange(positions).unsqueeze(0))
    return shaded(added[0].detach().t())


def bias_picture(position: Position, positions: int = 48) -> str:
    """The weight that the last query gives to each of equal keys, relative to its own: one line a head, one column a
    key."""
    head, key = torch.arange(position.heads).unsqueeze(1), torch.arange(positions)
    weight = torch.exp(position.bias(head, torch.tensor(positions - 1), key))
    return shaded(weight)
