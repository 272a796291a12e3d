"""Lightning, told to be quiet about what is done here on purpose."""

import logging
import warnings


def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "Checkpoint directory .* exists and is not empty",
        "The dirpath has changed",  # a run folder may be moved, and resumed there
        "LeafSpec",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
