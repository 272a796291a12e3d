"""Whether a decoder fits into this machine, known before it is allocated: the system would end us without a word."""

import math
import os
from pathlib import Path

import torch

from ablate.errors import AblateError

SMALL = 2**24  # parameters: what is surely below is not counted, which would take as long as to build it
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container: bytes, or "max"


def check_memory(config, training: bool = False) -> None:
    """Raises AblateError if this machine has not the memory that the decoder of a `DecoderConfig` takes on its CPU.

    training: with its gradients and the two moments of AdamW.
    """
    if torch.get_default_device().type != "cpu" or _bound(config) < SMALL:
        return
    from ablate.model.decoder import Decoder  # which calls this

    with torch.device("meta"):
        parameters = sum(p.numel() for p in Decoder(config).parameters())
    needed, there = parameters * (16 if training else 4), machine_memory()
    if needed > there:
        purpose = "to train" if training else "to hold"
        remedy = "train on a GPU that has it" if training else 'build it under torch.device("meta") to count it'
        raise AblateError(
            f"model.dim={config.dim}, model.depth={config.depth}: {parameters:,} parameters take {_gib(needed)} "
            f"{purpose} in fp32, and this machine has {_gib(there)}: lower model.dim or model.depth, or {remedy}"
        )


def machine_memory() -> int:
    """Bytes: physical memory, or what a container may take of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return physical if limit == "max" else min(physical, int(limit))


def _bound(config) -> int:
    """Some multiple of the parameters of a decoder: every whole number among its widths counts as a factor."""
    factors = [[*spec["attention"].values(), *spec["ffn"].values()] for spec in config.layers()]
    layers = sum(math.prod(f for f in layer if isinstance(f, int) and f > 0) for layer in factors)
    return config.dim * (config.vocab_size + config.context + 16 * config.dim * layers)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.0f} GiB"
