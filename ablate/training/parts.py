"""The parts of a run that need no data, built and checked before any data is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import nn

from ablate import check, hardware
from ablate.compose import plain
from ablate.data import CORPORA, Settings
from ablate.errors import AblateError, first_line
from ablate.generation import Sampling
from ablate.metrics import METRICS, Sums
from ablate.model.config import DecoderConfig, load_plugins
from ablate.model.decoder import Decoder, check_memory
from ablate.registry import check_options
from ablate.training.optimizer import OPTIMIZERS
from ablate.training.ranks import STRATEGIES
from ablate.training.scheduler import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The text to write at the end of training.

    Raises:
        AblateError: an empty prompt, or a number out of its range.
    """

    prompt: str
    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        check.text("sample.prompt", self.prompt)
        check.whole("sample.max_new_tokens", self.max_new_tokens, 1)
        try:
            Sampling(self.temperature)
        except AblateError as error:
            raise AblateError(f"sample.{error}") from error


@dataclass(frozen=True)
class Parts:
    decoder: Decoder
    kernels: list[str]  # the kernel that computes each layer's attention in training
    data: Settings
    corpus: Any  # not open yet
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[int, int], float]  # (step, max_steps) -> factor on the learning rate
    accelerator: str
    precision: str
    sample: Sample | None

    @property
    def device(self) -> torch.device:
        return hardware.device_of(self.accelerator)


def assemble(config: DictConfig, device: str = "cpu") -> Parts:
    """The parts that `conf/train.yaml` describes. device: where the decoder is built; on "meta" it has no weights.

    Raises:
        AblateError: the first mistake found; the message names its key.
    """
    for group in ("model", "data", "optimizer", "scheduler", "trainer", "callbacks", "logger", "sample"):
        node = config.get(group)
        if not isinstance(node, DictConfig) and not (group == "sample" and node is None):
            raise check.wrong(group, node, "keys and values", null=group == "sample")
    tags = config.tags
    if not isinstance(tags, ListConfig) or not all(isinstance(tag, str) for tag in tags):
        raise check.wrong("tags", tags, "a list of names, such as tags=[one,two]")
    load_plugins(config.plugins)
    check.seed("seed", config.seed)
    check.switch("compile", config.compile)
    sample = None
    if config.sample is not None:
        sample = Sample(**check_options("sample", "the sample", Sample, plain(config.sample)))
    _check_trainer(config.trainer)
    accelerator = hardware.resolve_accelerator(config.trainer.accelerator, devices=config.trainer.devices)
    precision = hardware.resolve_precision(config.trainer.precision, accelerator)
    data, corpus = read_data(plain(config.data))
    model = DecoderConfig.from_dict(plain(config.model))
    _check_sizes(data, model)
    optimizer, schedule = OPTIMIZERS.build(plain(config.optimizer)), SCHEDULES.build(plain(config.scheduler))
    if accelerator == "cpu":
        check_memory(model, training=True)
    with torch.device(device):
        decoder = Decoder(model, config.seed)
    if config.trainer.strategy == "fsdp":
        _check_shardable(decoder)
    kernels = decoder.kernels(hardware.training_place(accelerator, precision, data.context, config.compile))
    steps = config.trainer.max_steps
    _try("optimizer", lambda: _check_optimizer(optimizer(decoder)))
    _try("scheduler", lambda: [float(schedule(step, steps)) for step in (0, steps)])
    for row in METRICS.of_validation():
        _try(f"metrics: {row.name}", lambda row=row: float(row.of(Sums(*torch.ones(4).unbind()))))
    return Parts(decoder, kernels, data, corpus, optimizer, schedule, accelerator, precision, sample)


def _check_optimizer(made: object) -> None:
    if not isinstance(made, torch.optim.Optimizer):
        raise check.wrong("optimizer", made, "a torch optimiser when it is called with a model")


def read_data(node: dict[str, Any]) -> tuple[Settings, Any]:
    """The settings in a resolved node `data`, and the corpus that it names, not yet open.

    Raises:
        AblateError: an unknown key, or an invalid value.
    """
    node = dict(node)
    kind = CORPORA.component(node.get("name")).Settings
    shared = {key: node.pop(key) for key in list(node) if key in kind.__dataclass_fields__}
    corpus = CORPORA.build(node)
    return kind(**check_options("data", "data", kind, shared)), corpus


def _check_trainer(trainer: DictConfig) -> None:
    """Checks the options that this package reads; Lightning's Trainer checks the others."""
    steps = ("max_steps", "accumulate_grad_batches", "log_every_n_steps", "val_check_interval")
    for key in (*steps, "devices", "num_nodes"):
        check.whole(f"trainer.{key}", trainer[key], 1)
    check.choice("trainer.strategy", trainer.strategy, STRATEGIES)
    check.number("trainer.gradient_clip_val", trainer.gradient_clip_val, above=0, null=True)
    limit = trainer.get("limit_val_batches")
    check.number("trainer.limit_val_batches", limit, above=0, null=True, hint="every run ends with a validation")


def _check_shardable(decoder: Decoder) -> None:
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 0:
            raise AblateError(
                f"trainer.strategy=fsdp: {name} is a single number, which cannot be split by rows; make it "
                "torch.ones(1), or use trainer.strategy=ddp"
            )


def _check_sizes(settings: Settings, model: DecoderConfig) -> None:
    if settings.vocab_size > model.vocab_size:
        raise AblateError(
            f"model.vocab_size={model.vocab_size} is less than data.vocab_size={settings.vocab_size}: "
            "leave model.vocab_size out to make them equal"
        )
    if settings.context > model.context:
        raise AblateError(
            f"data.context={settings.context} is more than model.context={model.context}: raise model.context"
        )


def _try(key: str, attempt: Callable[[], object]) -> None:
    """Calls a component once, so that a user's component fails here, with its key in the message, not in training."""
    try:
        attempt()
    except AblateError:
        raise
    except Exception as error:
        raise AblateError(f"{key}: {first_line(error)}") from error
