"""Overrides, `model.dim=64` and `+model/norm=none`: their keys, how their values are quoted, and which of them make a
run what it is. Hydra's own parser reads whole ones."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Where a run lies and what it was started as. They are not recorded with it: a folder may be moved.
PLACE = ("run_dir", "resume")
# What says where files go, how a run is watched and named, and what is sampled after it: nothing that it computes.
ASIDE = (*PLACE, "paths", "hydra", "tags", "logger", "sample", "study", "callbacks.checkpoint", "callbacks.progress")


def key_of(override: str) -> str:
    """model.dim, of +model.dim=64."""
    return override.lstrip("+~").split("=", 1)[0]


def under(key: str, owners: Iterable[str]) -> str | None:
    """The first of `owners` that the key is, or lies below: `paths` for `paths.data`, `hydra` for `hydra/launcher`."""
    return next((owner for owner in owners if re.match(rf"{re.escape(owner)}($|[./@])", key)), None)


def without(overrides: Iterable[str], owners: Iterable[str]) -> list[str]:
    """The overrides whose key is none of `owners`, nor below one."""
    owners = tuple(owners)
    return [override for override in overrides if under(key_of(override), owners) is None]


def parsed(overrides: list[str]) -> "list[Override]":
    """As Hydra reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser  # its grammar takes a while to import

    return OverridesParser.create().parse_overrides(overrides)


def quoted(text: str) -> str:
    """A value as an override can hold it, whatever signs it has."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def written(value: Any) -> str:
    """A plain value as an override writes it: null, true, rope."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run what it is: its plain configuration without the seed and what is `ASIDE`."""

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
