"""How many bytes the KV cache of one text takes as it grows: of a model, and of its twins with other attention."""

import dataclasses
from typing import Any

import torch

from ablate.errors import AblateError
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder

FIRST, LEAST_LAST = 128, 4096  # contexts: from the first on, doubled, up to the model's own but at least to the last
WINDOW = 128  # of the local twin of a model that has none


def cache_memory(model: Decoder) -> list[dict[str, Any]]:
    """Curves of bytes in the model's dtype over the context, counted from the shapes of its cache.

    `mha`, `gqa` and `mqa` under the full pattern, `gqa` with a local window, and the model itself if it is none of
    these. Twins that the model's other parts do not allow are left out.
    """
    dtype, curves, seen = model.embedding.weight.dtype, [], []
    for name, config in _variants(model):
        try:
            with torch.device("meta"):
                twin = Decoder(config).to(dtype)
        except AblateError:
            continue
        if _kept(twin) not in seen:
            seen.append(_kept(twin))
            curves.append({"name": name, "this": _kept(twin) == _kept(model), "points": _points(twin)})
    if _kept(model) not in seen:
        curves.append({"name": "this model", "this": True, "points": _points(model)})
    return curves


def _variants(model: Decoder) -> list[tuple[str, DecoderConfig]]:
    """Names and configurations of the twins."""
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


def _kept(model: Decoder) -> list[tuple]:
    """All that the cache depends on, layer by layer."""
    return [
        (block.attention.kv_heads, block.attention.head_dim, layer.pattern)
        for block, layer in zip(model.blocks, model.layers, strict=True)
    ]


def _points(model: Decoder) -> list[list[int]]:
    last, context, points = max(model.config.context, LEAST_LAST), FIRST, []
    while context <= last:
        points.append([context, model.cache_bytes(context)])
        context *= 2
    return points
