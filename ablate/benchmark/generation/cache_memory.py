"""Bytes of the KV cache against the length of a text: for a model, and for the same model with other attention."""

import dataclasses
from dataclasses import dataclass

import torch

from ablate.errors import AblateError
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder

SHORTEST = 128  # tokens: the first context of a curve; each further one is twice as long
LONGEST = 4096  # tokens: the last context of a curve, unless the model's own is longer
WINDOW = 128  # tokens: the window of the local variant, if the model has no window of its own


@dataclass(frozen=True)
class CacheCurve:
    """The cache of one text with one choice of attention and pattern.

    this: whether the model itself has this choice. points: pairs of a context in tokens and the bytes of its cache.

    Raises:
        ValueError: a point is not two positive numbers.
    """

    name: str
    this: bool
    points: list[list[int]]

    def __post_init__(self):
        if not all(context > 0 and nbytes > 0 for context, nbytes in self.points):
            raise ValueError(f"an empty cache in the curve of {self.name}")


def cache_memory(model: Decoder) -> list[CacheCurve]:
    """Curves in the model's dtype, counted from the shapes of its cache: nothing is run.

    There is one curve each for `mha`, `gqa` and `mqa` with the full pattern and for `gqa` with a local window, where
    the model's other parts allow it. A model that is none of these gets its own curve.
    """
    dtype, curves, counted = model.embedding.weight.dtype, [], []
    for name, config in _variants(model):
        try:
            with torch.device("meta"):
                variant = Decoder(config).to(dtype)
        except AblateError:
            continue
        if _cached(variant) not in counted:
            counted.append(_cached(variant))
            curves.append(CacheCurve(name, _cached(variant) == _cached(model), _points(variant)))
    if _cached(model) not in counted:
        curves.append(CacheCurve("this model", True, _points(model)))
    return curves


def _variants(model: Decoder) -> list[tuple[str, DecoderConfig]]:
    """Names and configurations of the model with other attention and patterns."""
    config, head_dim = model.config, model.blocks[0].attention.head_dim
    layer = config.layers()[0]
    kv_heads = layer["attention"].get("kv_heads") or max(2, config.heads // 4)
    windows = [spec["pattern"]["window"] for spec in config.layers() if "window" in spec["pattern"]]
    window = windows[0] if windows else WINDOW
    grouped = {"name": "gqa", "kv_heads": kv_heads, "head_dim": head_dim}
    full, local = {"name": "full"}, {"name": "local", "window": window}
    parts = {
        "mha": ({"name": "mha", "head_dim": head_dim}, full),
        f"gqa ({kv_heads} kv heads)": (grouped, full),
        "mqa": ({"name": "mqa", "head_dim": head_dim}, full),
        f"gqa ({kv_heads}), local (window {window})": (grouped, local),
    }
    return [
        (name, dataclasses.replace(config, attention=attention, pattern=pattern, kernel="reference"))
        for name, (attention, pattern) in parts.items()
    ]


def _cached(model: Decoder) -> list[tuple]:
    """Everything that the size of the cache depends on, layer by layer."""
    return [
        (block.attention.kv_heads, block.attention.head_dim, layer.pattern)
        for block, layer in zip(model.blocks, model.layers, strict=True)
    ]


def _points(model: Decoder) -> list[list[int]]:
    longest, context, points = max(model.config.context, LONGEST), SHORTEST, []
    while context <= longest:
        points.append([context, model.cache_bytes(context)])
        context *= 2
    return points
