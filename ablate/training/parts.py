"""Everything that a run needs but data, built and checked before any data is touched."""

from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from ablate.accounting import Budget, budget
from ablate.compose import plain
from ablate.data import CORPORA, PACKERS
from ablate.errors import AblateError
from ablate.model.config import DecoderConfig, load_plugins
from ablate.model.decoder import Decoder
from ablate.model.registry import check_options
from ablate.training import hardware


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What `data` says besides the corpus and its own options."""

    tokenizer: str | None
    vocab_size: int
    context: int
    packing: str
    document_mask: bool
    restart_positions: bool
    batch_size: int
    val_fraction: float
    workers: int


@dataclass
class Parts:
    decoder: Decoder
    budget: Budget
    data: DataSettings
    corpus: Any
    optimizer: Any  # model -> torch optimiser
    schedule: Any  # (step, max_steps) -> factor on the learning rate
    accelerator: str
    precision: str


def assemble(config: DictConfig) -> Parts:
    """The parts that `conf/train.yaml` describes.

    Raises:
        AblateError: the first mistake found, by its key.
    """
    load_plugins(plain(config.plugins))
    _whole("seed", config.seed, 0)
    for key in ("max_steps", "accumulate_grad_batches", "log_every_n_steps", "val_check_interval"):
        _whole(f"trainer.{key}", config.trainer[key], 1)
    accelerator = hardware.resolve_accelerator(config.trainer.accelerator)
    precision = config.trainer.precision
    if precision == "auto":
        precision = "bf16-mixed" if hardware.has_bf16(accelerator) else "32-true"
    model = DecoderConfig.from_dict(plain(config.model))
    data, corpus = _data(plain(config.data), model)
    decoder = Decoder(model, config.seed)
    optimizer, schedule = instantiate(config.optimizer), instantiate(config.scheduler)
    _try("optimizer", lambda: optimizer(decoder))
    _try("scheduler", lambda: [schedule(step, config.trainer.max_steps) for step in (0, config.trainer.max_steps)])
    return Parts(decoder, budget(decoder), data, corpus, optimizer, schedule, accelerator, precision)


def _data(node: dict[str, Any], model: DecoderConfig) -> tuple[DataSettings, Any]:
    shared = {key: node.pop(key) for key in list(node) if key in DataSettings.__dataclass_fields__}
    corpus = CORPORA.build(node)
    settings = DataSettings(**check_options("data", "data", DataSettings, shared))
    PACKERS.component(settings.packing)
    for key, least in (("batch_size", 1), ("vocab_size", 1), ("context", 1), ("workers", 0)):
        _whole(f"data.{key}", getattr(settings, key), least)
    if settings.vocab_size > model.vocab_size:
        raise AblateError(
            f"model.vocab_size={model.vocab_size} has no room for data.vocab_size={settings.vocab_size}: "
            "leave model.vocab_size out, and it follows"
        )
    if settings.context > model.context:
        raise AblateError(f"data.context={settings.context} is beyond model.context={model.context}: raise that")
    return settings, corpus


def _whole(key: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise AblateError(f"{key}={value}: expected a whole number, at least {least}")


def _try(key: str, attempt: Any) -> None:
    try:
        attempt()
    except (TypeError, ValueError) as error:
        raise AblateError(f"{key}: {str(error).splitlines()[0]}") from error
