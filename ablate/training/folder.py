"""Where a run goes, and what it writes there about itself."""

import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ablate.compose import compose_config, plain
from ablate.errors import AblateError
from ablate.run import read_config, read_summary, write_text

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

_NOT_PART_OF_A_RUN = ("run_dir", "resume", "paths.", "hydra.", "hydra/")
_FIXED = ("model", "data", "optimizer", "scheduler", "seed")


def create(config: DictConfig, overrides: list[str], job: int | None, sweep_dir: str | None) -> Path:
    """A new folder for one run, shared with no other, even one started in the same second.

    job, sweep_dir: Hydra's number of this job and folder of the sweep, in a multirun.

    Raises:
        AblateError: `run_dir` holds something already, or cannot be written.
    """
    name = slug(overrides) or "default"
    try:
        if job is not None:
            return _unique(Path(config.run_dir or sweep_dir) / f"{job}_{name}")
        if not config.run_dir:
            return _unique(Path(config.paths.runs) / time.strftime("%Y-%m-%d") / f"{time.strftime('%H-%M-%S')}_{name}")
        path = Path(config.run_dir)
        path.mkdir(parents=True, exist_ok=True)
        if any(not found.is_dir() for found in path.rglob("*")):
            remedy = f", or go on with resume={path}" if (path / "summary.json").exists() else ""
            raise AblateError(f"run_dir={path}: is not empty; choose another folder{remedy}")
        (path / "checkpoints").mkdir(exist_ok=True)
        return path
    except OSError as error:
        raise AblateError(f"run_dir={error.filename}: cannot be written: {error.strerror}; choose another") from error


class Claimed(AblateError):
    """A folder in which another process is at work."""


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Holds a run folder for this process; the system lets go of it however the process ends.

    Raises:
        Claimed: another process is at work in it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Claimed(f"run_dir={path}: another run is at work there; choose another folder") from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def _unique(path: Path) -> Path:
    for number in range(1, 10_000):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        (candidate / "checkpoints").mkdir()
        return candidate
    raise AblateError(f"run_dir={path}: ten thousand runs of that name are there already")


def slug(overrides: list[str]) -> str:
    """The overrides of a run as part of a folder's name: `norm-layernorm_seed-1`.

    Only characters that Hydra takes unquoted, so that `resume=` and `run=` take the path as it stands.
    """
    kept = [o.lstrip("+~") for o in overrides if not o.lstrip("+~").startswith(_NOT_PART_OF_A_RUN)]
    kept.sort(key=lambda o: not o.startswith(("model", "seed")))
    parts = [re.sub(r"[^A-Za-z0-9._+-]+", "-", re.sub(r"^(model|trainer|data)[./]", "", o)).strip("-.") for o in kept]
    while len("_".join(parts)) > 100:
        parts.pop()
    return "_".join(parts)


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


def key_of(override: str) -> str:
    """model.dim, of +model.dim=64"""
    return override.lstrip("+~").split("=", 1)[0]


def first_difference(key: str, saved: Any, now: Any) -> tuple[str, Any, Any]:
    """Where below `key` two values part first, and what each has there."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in sorted(saved.keys() | now.keys()):
            if saved.get(name) != now.get(name):
                return first_difference(f"{key}.{name}", saved.get(name), now.get(name))
    return key, saved, now


def identity(config: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Names a run for wandb, so that the runs of a sweep or a study compare well.

    In a study, its group is the study and its job type the arm; runs that choose a learning rate are a group beside.
    """
    path, node, study = Path(config.run_dir), config.logger.wandb, config.study
    tags = [*config.tags, *(o for o in overrides if len(o) <= 64), f"seed={config.seed}"]
    named = {
        "tags": list(dict.fromkeys(tags)),
        "id": lasting_id(path),
        "group": node.group or path.parent.name,
        "job_type": node.job_type or "train",
        "name": path.name,
    }
    if study is not None and study.arm is not None:
        group = node.group or study.name
        named["group"] = group if study.stage == "runs" else f"{group}: {study.stage}"
        named["job_type"] = node.job_type or study.arm
        named["name"] = f"{path.parent.name}/{path.name}"
    return named


def lasting_id(path: Path) -> str:
    """What wandb knows a folder by, so that whoever goes on there goes on in the same run."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def write_config(path: Path, config: DictConfig) -> None:
    write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(config))))


def provenance() -> dict[str, Any]:
    """What made a run: versions, machine, git revision of the code."""
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
