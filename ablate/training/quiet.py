"""Silences Lightning's messages about what this package does on purpose."""

import logging
import warnings

_EXPECTED = (
    "does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "The dirpath has changed",  # a run folder may be moved, and resumed there
    "LeafSpec",
    "`broadcast_buffers` is deprecated",  # not every torch that we support has its successor
    "returned a view tensor",  # of a compiled block under FSDP: nothing writes into it in place
    "to accumulate the metric across devices",  # a metric is summed over devices before it is logged
)


def quiet() -> None:
    """Silences Lightning's notices, and its warnings in `_EXPECTED`."""
    for package in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{package}").setLevel(logging.WARNING)
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
