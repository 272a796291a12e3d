"""Hydra's part in building a model: presets and overrides become plain data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from ablate.model.decoder import Decoder

# A task's vocabulary: its symbols and the end of text. What is no number is refused later, under its own key.
OmegaConf.register_new_resolver("plus_one", lambda n: n + 1 if isinstance(n, int) else n, replace=True)


def config_dir() -> str:
    """The folder of config groups: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """`conf/NAME.yaml` with overrides, as the command line would compose it; also from inside a Hydra job."""
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
        AblateError: a combination that cannot be built. Hydra's own errors: what does not compose.
    """
    from ablate.model.config import DecoderConfig, load_plugins  # torch takes seconds to import: not for --help
    from ablate.model.decoder import Decoder

    config = compose_config("build", [f"model={preset}", *(overrides or [])])
    load_plugins(config.plugins)
    return Decoder(DecoderConfig.from_dict(plain(config.model)), seed)
