"""Lightning, told to be quiet about what is done here on purpose."""

import logging
import warnings


def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in ("does not have many workers", "Checkpoint directory .* exists and is not empty", "LeafSpec"):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
