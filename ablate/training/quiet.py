"""Lightning, told to be quiet about what is done here on purpose."""

import logging
import warnings


def quiet() -> None:
    for package in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{package}").setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "Checkpoint directory .* exists and is not empty",
        "The dirpath has changed",  # a run folder may be moved, and resumed there
        "LeafSpec",
        "`broadcast_buffers` is deprecated",  # its successor is not in every torch that we take
        "returned a view tensor",  # of a compiled block under FSDP: nothing writes into it in place
        "to accumulate the metric across devices",  # done already where a metric is logged
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
