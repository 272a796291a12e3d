"""Taking up a run again: its configuration, from what its folder records and what is given now."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ablate.compose import compose_config
from ablate.errors import AblateError
from ablate.overrides import first_difference, key_of
from ablate.run import read_config, read_summary

_FIXED = ("model", "data", "optimizer", "scheduler", "seed")


def resumed(resume: str, overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """The configuration of the run in `resume`, composed again from its overrides and these ones.

    Only its overrides are taken from the folder, and none that names code.

    Raises:
        AblateError: no run there, or an override of what a resumed run keeps (its model, data, optimiser, seed).
    """
    path = Path(resume)
    recorded = [str(o) for o in read_summary(path).get("overrides", [])]
    later = {key_of(o): o for o in overrides if key_of(o) not in ("resume", "run_dir")}
    for override in recorded:
        names_code = key_of(override) in ("plugins", "hydra.searchpath") or "_target_" in override
        if names_code and key_of(override) not in later:
            raise AblateError(f"resume: the run was made with {override}, which names code: give it again yourself")
    merged = [o for o in recorded if key_of(o) not in later] + list(later.values())
    config = compose_config("train", merged)
    saved = read_config(path)
    for section in _FIXED:
        now = OmegaConf.to_container(config, resolve=True)[section]
        if now != saved.get(section):
            key, then, now = first_difference(section, saved.get(section), now)
            raise AblateError(
                f"resume: {key} is {now}, but the run has {then}; a resumed run keeps its "
                f"{', '.join(_FIXED)}: start a new run to change them"
            )
    config.run_dir = str(path)
    return config, merged
