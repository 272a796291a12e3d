"""Resumes a run: composes its configuration again, from the overrides in its folder and those given now."""

from pathlib import Path

from omegaconf import DictConfig

from ablate.compose import compose_config, plain
from ablate.errors import AblateError
from ablate.overrides import PLACE, first_difference, key_of, without
from ablate.run import read_config, read_summary

_FIXED = ("model", "data", "optimizer", "scheduler", "seed")  # what a resumed run cannot change


def resumed(folder: str, overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """The configuration and the overrides of the run in `folder`; `overrides` replace recorded ones with the same key.

    Takes only the overrides from the folder, and refuses those that name code to run.

    Raises:
        AblateError: no run there, or an override that would change its model, data, optimiser, schedule or seed.
    """
    path = Path(folder)
    recorded = [str(override) for override in read_summary(path).get("overrides", [])]
    given = {key_of(override): override for override in without(overrides, PLACE)}
    for override in recorded:
        names_code = key_of(override) in ("plugins", "hydra.searchpath") or "_target_" in override
        if names_code and key_of(override) not in given:
            raise AblateError(f"resume: the run was made with {override}, which names code: give it again yourself")
    merged = [override for override in recorded if key_of(override) not in given] + list(given.values())
    config = compose_config("train", merged)
    saved, composed = read_config(path), plain(config)
    for section in _FIXED:
        if composed[section] != saved.get(section):
            key, then, now = first_difference(section, saved.get(section), composed[section])
            raise AblateError(
                f"resume: {key} is {now}, but the run has {then}; a resumed run keeps its "
                f"{', '.join(_FIXED)}: start a new run to change them"
            )
    config.run_dir = str(path)
    return config, merged
