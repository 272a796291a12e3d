"""Helpers for Hugging Face libraries: work without the hub, and silence logged errors."""

import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 5  # seconds to wait for the hub's answer


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Lets Hugging Face libraries use the hub if it answers (yields True), else only their cache (yields False).

    Without this the libraries try an unreachable hub again and again, half a minute for each request.
    """
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    online = not any(before) and _answers(constants.ENDPOINT)
    if not online:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Stops `datasets` from logging the errors that it raises, so that the user reads each error once."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
