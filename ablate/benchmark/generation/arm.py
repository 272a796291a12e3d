"""What one benchmark of generation is called, and where it goes: alone, or as one job of a sweep."""

import re
from dataclasses import dataclass
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from ablate.errors import AblateError

DEFAULT = "results/benchmark"
_ELSEWHERE = ("out", "task")  # overrides that are no part of an arm's name
_BY_VALUE = ("model", "run")  # whose value says enough


@dataclass(frozen=True)
class Arm:
    """label: its name in tables and plots. folder: takes its JSON. page: the folder that a whole sweep shares."""

    label: str
    folder: Path
    page: Path

    @classmethod
    def of(cls, config: DictConfig, hydra: HydraConf, words: list[str]) -> "Arm":
        """config: as composed; hydra: how; words: of the command line."""
        swept = _swept(list(hydra.overrides.task), words) if hydra.mode == RunMode.MULTIRUN else []
        label = " ".join(map(_short, swept))
        if not label:
            label = hydra.runtime.choices["model"] if config.run is None else Path(str(config.run)).resolve().name
        if hydra.mode != RunMode.MULTIRUN:
            folder = Path(str(config.out or DEFAULT))
            return cls(label, folder, folder)
        page = Path(str(hydra.sweep.dir))
        name = re.sub(r"[^A-Za-z0-9._=+-]+", "_", label)[:100]
        if name != label.replace(" ", "_") or config.run is not None:
            name += f"_{hydra.job.num}"  # what was left out may be all that tells it from another
        return cls(label, page / name, page)

    def make_folder(self) -> None:
        """Raises AblateError where it cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AblateError(f"out={self.folder}: cannot be written: {error.strerror}; choose another") from error


def names_model(overrides: list[str]) -> str | None:
    """The first of the overrides that is one of the model."""
    return next((o for o in overrides if re.match(r"[+~]*model\b", o)), None)


def _swept(overrides: list[str], words: list[str]) -> list[Override]:
    """Those of a job's overrides in which the jobs differ; all of them where the command line does not tell."""
    parse = OverridesParser.create().parse_overrides
    command = parse([word for word in words if "=" in word and not word.startswith("-")])
    keys = {override.key_or_group for override in command if override.is_sweep_override()}
    job = [override for override in parse(overrides) if override.key_or_group not in _ELSEWHERE]
    return [override for override in job if override.key_or_group in keys] or ([] if command else job)


def _short(override: Override) -> str:
    """model/attention=mha -> attention=mha"""
    key, value = override.key_or_group, override.get_value_element_as_str()
    if key == "run":
        value = Path(value.strip("'\"")).resolve().name
    return value if key in _BY_VALUE else f"{re.split('[./]', key)[-1]}={value}"
