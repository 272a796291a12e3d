"""Provenance of a run: versions, machine, git revision of the code."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def provenance() -> dict[str, Any]:
    """The command, the versions of packages, the machine, and the git revision of the code, as plain data."""
    packages = ("torch", "lightning", "hydra-core", "tokenizers", "datasets", "numpy")
    return {
        "command": " ".join(sys.argv),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "machine": {"platform": platform.platform(), "threads": torch.get_num_threads(), "gpu": _gpu()},
        "git": _git(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _git() -> dict[str, Any] | None:
    code = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=code, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        return {"revision": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
