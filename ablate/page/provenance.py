"""Versions, machine and git revision in words, as `ablate.training.provenance` recorded them."""

from collections.abc import Mapping
from typing import Any


def facts(recorded: Mapping[str, Any] | None) -> str:
    """`torch 2.13.0, numpy 2.4.6`; None is left out."""
    return ", ".join(f"{key} {value}" for key, value in (recorded or {}).items() if value is not None)


def revision(git: Mapping[str, Any] | None) -> str:
    """The commit, and whether there were uncommitted changes; empty if it is unknown."""
    if not git or not git.get("revision"):
        return ""
    return f"{git['revision']}{', with changes' if git.get('dirty') else ''}"
