"""What a decoder is, in plain PyTorch. Components of your own import what they need from here:

from ablate.model import FFNS, NORMS, PATTERNS, Dense, Given, Linear, Pattern
"""

import importlib

_HOMES = {
    "ATTENTIONS": "axes.attention",
    "AXES": "config",
    "Attention": "axes.attention",
    "Block": "axes.placement",
    "Decoder": "decoder",
    "DecoderConfig": "config",
    "Dense": "axes.ffn",
    "FFNS": "axes.ffn",
    "FeedForward": "axes.ffn",
    "ForwardContext": "context",
    "Given": "given",
    "Linear": "linear",
    "NORMS": "axes.norm",
    "PATTERNS": "axes.pattern",
    "PLACEMENTS": "axes.placement",
    "POSITIONS": "axes.position",
    "Pattern": "masks",
    "Position": "axes.position",
    "Role": "roles",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'ablate.model' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ablate.model.{_HOMES[name]}"), name)
