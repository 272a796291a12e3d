"""The run folder: everything that one run leaves behind.

    config.yaml      the resolved configuration
    model/           config.json, model.safetensors, tokenizer.json: plain data only
    checkpoints/     Lightning checkpoints for resuming
    metrics.csv      the curves
    summary.json     final metrics, budget, speed, memory, versions, corpus, seed, overrides, status

Loading reads plain data and executes nothing. Files are written whole or not at all.
"""

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from yaml import YAMLError

from ablate.compose import plain
from ablate.data.tokenizer import Tokenizer
from ablate.errors import AblateError, first_line
from ablate.files import LOCK, read_json, replacing, write_json, write_text
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder, without_weights
from ablate.model.kernels.kernel import Place
from ablate.overrides import PLACE, without


@dataclass(frozen=True)
class Run:
    """A finished run, loaded."""

    path: Path
    model: Decoder
    tokenizer: Tokenizer
    config: dict[str, Any]
    summary: dict[str, Any]


def load(path: str | Path) -> Run:
    """Loads a run folder, even one that was moved: the model in fp32 on the CPU, in eval mode.

    Raises:
        AblateError: not a run folder, no model in it yet, or files that are damaged or do not fit together.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise AblateError(f"run={path!r}: expected the path of a run folder, such as one under runs/")
    path = Path(path)
    summary, config = read_summary(path), read_config(path)
    model_dir = path / "model"
    if not model_dir.is_dir():
        raise AblateError(
            f"{path}: the run has no model (status: {summary.get('status')}); finish it with train.py resume={path}"
        )
    model = load_model(model_dir)
    return Run(path, model, Tokenizer.load(str(model_dir / "tokenizer.json")), config, summary)


def load_model(folder: Path) -> Decoder:
    """The decoder of a `model/` folder, from config.json and model.safetensors: in fp32 on the CPU, in eval mode.

    If the configured kernel cannot train on the CPU, such as one for a GPU, `auto` replaces it: the result is the same.

    Raises:
        AblateError: files that are missing or damaged, or do not fit together.
    """
    try:
        config = DecoderConfig.from_dict(read_json(folder / "config.json"))
    except AblateError as error:
        raise AblateError(f"{folder}: {error} (components of your own: name their modules in plugins=[...])") from error
    weights_file = folder / "model.safetensors"
    try:
        weights = load_file(weights_file)
    except (OSError, SafetensorError) as error:
        raise AblateError(f"{weights_file}: cannot be read as safetensors: {first_line(error)}") from error
    with without_weights():
        model = Decoder(config)
    expected = {name: tensor.shape for name, tensor in untied_state(model).items()}
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        wrong = sorted(set(expected.items()) ^ {(name, tensor.shape) for name, tensor in weights.items()})[0]
        raise AblateError(f"{weights_file}: its weights do not fit config.json, first at '{wrong[0]}'")
    own = {name: weight.to(dtypes[name], copy=True) for name, weight in weights.items()}  # out of the mapped file
    model.load_state_dict(own, strict=False, assign=True)
    model.tie()
    try:
        model.kernels(Place("cpu", torch.float32, gradient=True))
    except AblateError:
        model.config = replace(config, kernel="auto")
    return model.eval()


def save_model(folder: Path, model: Decoder, tokenizer: Tokenizer) -> None:
    """Writes a `model/` folder, which `load_model` reads, whole or not at all."""
    with replacing(folder) as beside:
        beside.mkdir()
        weights = {name: tensor.contiguous() for name, tensor in untied_state(model).items()}
        save_file(weights, beside / "model.safetensors")
        (beside / "model.safetensors").chmod(0o644)
        write_json(beside / "config.json", model.config.to_dict())
        tokenizer.save(beside / "tokenizer.json")


def untied_state(model: Decoder) -> dict[str, torch.Tensor]:
    """The state dict, without the head if it is tied: it is then the embedding."""
    state = model.state_dict()
    if model.config.tie_embeddings:
        del state["head.weight"]
    return state


def read_summary(path: Path) -> dict[str, Any]:
    """The summary.json of a run folder. Raises AblateError: no such folder, no summary, or a damaged one."""
    if not path.is_dir():
        raise AblateError(f"{path}: no such folder; expected a run folder, such as one under runs/")
    if not (path / "summary.json").is_file():
        raise AblateError(f"{path}: not a run folder: it has no summary.json")
    return read_json(path / "summary.json")


def read_config(path: Path) -> dict[str, Any]:
    """The config.yaml of a run folder as plain data. Raises AblateError: it is missing or damaged."""
    file = path / "config.yaml"
    try:
        data = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except FileNotFoundError as error:
        raise AblateError(f"{file}: it is missing; restore it, or move the folder away") from error
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        reason = first_line(error)
        raise AblateError(f"{file}: cannot be read: {reason}; restore it, or move its folder away") from error
    if not isinstance(data, dict):
        raise AblateError(f"{file}: expected keys and values; restore it, or move its folder away")
    return _with_names(data)


def _with_names(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run made when the optimiser and the schedule were not named yet, as it is written now."""
    for group in ("optimizer", "scheduler"):
        node = config.get(group)
        target = str(node.get("_target_")) if isinstance(node, dict) else ""
        if target.startswith("ablate.training.") and node.get("_partial_") is True:
            options = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
            config[group] = {"name": target.rpartition(".")[2], **options}
    return config


def create(config: DictConfig, overrides: list[str], job: int | None, sweep_dir: str | None) -> Path:
    """Makes a folder for one run. No two runs get the same one, even if they start in the same second.

    job, sweep_dir: in a multirun, Hydra's number for this job and the folder of the sweep.

    Raises:
        AblateError: `run_dir` is not empty, or cannot be written.
    """
    name = slug(overrides) or "default"
    try:
        if job is not None:
            return _unique(Path(config.run_dir or sweep_dir) / f"{job}_{name}")
        if not config.run_dir:
            return _unique(Path(config.paths.runs) / time.strftime("%Y-%m-%d") / f"{time.strftime('%H-%M-%S')}_{name}")
        path = Path(config.run_dir)
        path.mkdir(parents=True, exist_ok=True)
        if any(not inside.is_dir() and inside.name != LOCK for inside in path.rglob("*")):
            remedy = f", or continue its run with resume={path}" if (path / "summary.json").exists() else ""
            raise AblateError(f"run_dir={path}: is not empty; choose another folder{remedy}")
        (path / "checkpoints").mkdir(exist_ok=True)
        return path
    except OSError as error:
        raise AblateError(f"run_dir={error.filename}: cannot be written: {error.strerror}; choose another") from error


def _unique(path: Path) -> Path:
    for number in range(1, 10_000):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        (candidate / "checkpoints").mkdir()
        return candidate
    raise AblateError(f"run_dir={path}: there are ten thousand runs of that name already; choose another folder")


def slug(overrides: list[str]) -> str:
    """The overrides of a run as part of a folder's name: `norm-layernorm_seed-1`.

    It has only characters that Hydra takes unquoted, so that the path needs no quotes after `resume=` and `run=`.
    """
    kept = [o.lstrip("+~") for o in without(overrides, (*PLACE, "paths", "hydra"))]
    kept.sort(key=lambda o: not o.startswith(("model", "seed")))
    parts = [re.sub(r"[^A-Za-z0-9._+-]+", "-", re.sub(r"^(model|trainer|data)[./]", "", o)).strip("-.") for o in kept]
    while len("_".join(parts)) > 100:
        parts.pop()
    return "_".join(parts)


def write_config(path: Path, config: DictConfig) -> None:
    write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(config))))
