"""Whether a decoder fits into this machine's memory: otherwise the OS would kill the process silently."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.errors import AblateError
from ablate.words import memory

if TYPE_CHECKING:
    from ablate.model.config import DecoderConfig

SMALL = 2**24  # parameters; below this a model is not counted, since counting takes as long as building
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # a container's limit: bytes, or "max"


def is_small(config: "DecoderConfig") -> bool:
    """Whether the model certainly fits. The bound multiplies all whole numbers among a layer's options."""
    factors = [[*spec["attention"].values(), *spec["ffn"].values()] for spec in config.layers()]
    layers = sum(math.prod(f for f in layer if isinstance(f, int) and f > 0) for layer in factors)
    return config.dim * (config.vocab_size + config.context + 16 * config.dim * layers) < SMALL


def require_memory(config: "DecoderConfig", parameters: int, training: bool) -> None:
    """Raises AblateError if this machine has no room for the parameters in fp32.

    training: with their gradients and the two moments of AdamW.
    """
    needed, there = parameters * (16 if training else 4), machine_memory()
    if needed > there:
        purpose = "to train" if training else "to hold"
        remedy = "train on a GPU that has it" if training else 'build it under torch.device("meta") to count it'
        raise AblateError(
            f"model.dim={config.dim}, model.depth={config.depth}: {parameters:,} parameters take {memory(needed)} "
            f"{purpose} in fp32, and this machine has {memory(there)}: lower model.dim or model.depth, or {remedy}"
        )


def machine_memory() -> int:
    """Bytes of physical memory, or of the part that a container may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return physical if limit == "max" else min(physical, int(limit))
