"""Overrides, such as `model.dim=64` and `+model/norm=none`: their keys, the quoting of their values, and which of them
change what a run computes."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Where a run's folder is. Not recorded with the run, since a folder may be moved.
PLACE = ("run_dir", "resume")
# Keys that do not change what a run computes: where files go, how a run is watched and named, what is sampled after it.
ASIDE = (*PLACE, "paths", "hydra", "tags", "logger", "sample", "study", "callbacks.checkpoint", "callbacks.progress")


def key_of(override: str) -> str:
    """`+model.dim=64` -> `model.dim`."""
    return override.lstrip("+~").split("=", 1)[0]


def under(key: str, owners: Iterable[str]) -> str | None:
    """The first of `owners` that is the key or is above it: `paths` for `paths.data`, `hydra` for `hydra/launcher`."""
    return next((owner for owner in owners if re.match(rf"{re.escape(owner)}($|[./@])", key)), None)


def without(overrides: Iterable[str], owners: Iterable[str]) -> list[str]:
    """The overrides whose key is neither one of `owners` nor below one."""
    owners = tuple(owners)
    return [override for override in overrides if under(key_of(override), owners) is None]


def parsed(overrides: list[str]) -> "list[Override]":
    """The overrides as Hydra's own parser reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser  # its grammar takes a while to import

    return OverridesParser.create().parse_overrides(overrides)


def quoted(text: str) -> str:
    """A value quoted for an override, whatever characters it has."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def written(value: Any) -> str:
    """A plain value as an override writes it: null, true, rope."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plain configuration that decides what a run computes: all but the seed and the keys in `ASIDE`."""

    def kept(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            key: kept(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
            for key, value in node.items()
            if f"{prefix}{key}" not in ("seed", *ASIDE)
        }

    return kept(config, "")


def first_difference(key: str, saved: Any, now: Any) -> tuple[str, Any, Any]:
    """Where below `key` two plain values first differ, and what each has there."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in sorted(saved.keys() | now.keys()):
            if saved.get(name) != now.get(name):
                return first_difference(f"{key}.{name}" if key else name, saved.get(name), now.get(name))
    return key, saved, now
