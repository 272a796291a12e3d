"""Composes presets and overrides into plain data, by Hydra, and words the mistakes that it finds."""

import difflib
import os
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ablate.errors import AblateError, did_you_mean

if TYPE_CHECKING:
    from ablate.model.decoder import Decoder

OmegaConf.register_new_resolver("or_else", lambda value, other: other if value is None else value, replace=True)
# A task's vocabulary: its symbols and the end of text. A value that is not a number is refused later, by its own key.
OmegaConf.register_new_resolver("plus_one", lambda n: n + 1 if isinstance(n, int) else n, replace=True)


def config_dir() -> str:
    """The folder of config groups: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """`conf/NAME.yaml` with overrides, as the command line would compose it; works inside a Hydra job, too."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            return compose(name, overrides)
    finally:
        GlobalHydra.instance().hydra = outer


def plain(node: DictConfig) -> dict[str, Any]:
    """A configuration node as resolved plain data. A value that is still missing (???) is an error."""
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


def build(preset: str = "gqa_rope", overrides: list[str] | None = None, seed: int = 0) -> "Decoder":
    """The decoder that `model=PRESET` and the overrides describe, in fp32 on the CPU.

        model = build("gqa_rope", overrides=["model/norm=layernorm", "model.depth=2"])

    Raises:
        AblateError: the configuration does not compose, or the model cannot be built.
    """
    from ablate.model.config import DecoderConfig, load_plugins  # late: torch takes seconds, --help does not need it
    from ablate.model.decoder import Decoder

    try:
        config = compose_config("build", [f"model={preset}", *(overrides or [])])
        model = plain(config.model)
    except Exception as error:
        if (text := mistake(error)) is None:
            raise
        raise AblateError(text) from error
    load_plugins(config.plugins)
    return Decoder(DecoderConfig.from_dict(model), seed)


def mistake(error: Exception) -> str | None:
    """The user's mistake behind `error` in one line: the key, what is wrong with it and the remedy.

    None: the error is not a user's mistake.
    """
    if isinstance(error, AblateError | HydraException | OmegaConfBaseException):
        return one_line(error)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if isinstance(error, ValueError) and frame.f_globals["__name__"].startswith("hydra."):
        given = getattr(frame.f_locals.get("override"), "input_line", None)  # Hydra's own text omits it
        return f"{given}: expected the name of an option of this config group" if given else str(error)
    return None


def one_line(error: BaseException) -> str:
    """An exception's message on one line, in our own words where Hydra's message does not say what to do."""
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, AblateError):
        return str(cause)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; quote a value that has = , [ ] {{ }} ( ) or spaces: \"key='value'\""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: needs a value; set {error.full_key}=..."
    text = str(error)
    group = re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\n((?:\t.*\n)+)", text)
    if group:
        name, folder, options = group.groups()
        extra = "; pip install -e '.[launchers]' brings joblib, submitit and ray" if folder == "hydra/launcher" else ""
        return f"{folder}: no option '{name.split('/')[-1]}'{did_you_mean(name.split('/')[-1], options.split())}{extra}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return _unknown_key(unknown.group(1), cause, text)
    return re.sub(r"\s+", " ", text).strip()


def _unknown_key(key: str, cause: BaseException | None, text: str) -> str:
    if "/" not in key and isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        more = " (for Lightning's other options put a + in front)" if key.startswith("trainer.") else ""
        return f"{key}: no such key{did_you_mean(cause.key, map(str, cause.parent_node))}{more}"
    if "/" in key or "No match in the defaults list" in text:
        groups = [os.path.relpath(root, config_dir()) for root, _, _ in os.walk(config_dir())][1:]
        if key in groups:
            return f"{key}: a config group that this command, or this task, does not read; leave it out"
        nearest = difflib.get_close_matches(key, groups, n=1, cutoff=0.5)
        return f"{key}: no such config group" + (f"; did you mean '{nearest[0]}'?" if nearest else "")
    return re.sub(r"\s+", " ", text).strip()
