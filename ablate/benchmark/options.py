"""Options that take one value or a list of values, as both benchmarks check them."""

from collections.abc import Callable
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf

from ablate import check
from ablate.compose import plain

T = TypeVar("T")


def listed(config: DictConfig, key: str, check_one: Callable[[str, object], T], example: str) -> list[T]:
    """The values of the option `key`, each once.

    check_one: takes the key and one value; returns the value, or raises. example: a valid list.

    Raises:
        AblateError: the list is empty, or `check_one` refuses a value.
    """
    given = config[key]
    values = plain(given) if OmegaConf.is_list(given) else [given]
    if not values:
        raise check.wrong(key, values, f"at least one value, such as {key}={example}")
    return list(dict.fromkeys([check_one(key, value) for value in values]))
