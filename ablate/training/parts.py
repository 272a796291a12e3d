"""Everything that a run needs but data, built and checked before any data is touched."""

from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from ablate import hardware
from ablate.accounting import Budget, budget
from ablate.compose import plain
from ablate.data import CORPORA, Settings
from ablate.errors import AblateError
from ablate.generation import Sampling
from ablate.model.config import DecoderConfig, load_plugins
from ablate.model.decoder import Decoder, check_memory
from ablate.registry import check_options
from ablate.training.ranks import STRATEGIES


@dataclass
class Parts:
    decoder: Decoder
    kernels: list[str]  # that compute each layer's attention in training
    budget: Budget
    data: Settings
    corpus: Any
    optimizer: Any  # model -> torch optimiser
    schedule: Any  # (step, max_steps) -> factor on the learning rate
    accelerator: str
    precision: str


def assemble(config: DictConfig, device: str = "cpu") -> Parts:
    """The parts that `conf/train.yaml` describes. device: where the decoder is built; on "meta" it has no weights.

    Raises:
        AblateError: the first mistake found, by its key.
    """
    tags = config.tags
    if not isinstance(tags, ListConfig) or not all(isinstance(tag, str) for tag in tags):
        raise AblateError(f"tags={tags}: expected a list of names, such as tags=[one,two]")
    load_plugins(config.plugins)
    _whole("seed", config.seed, 0)
    if config.seed >= 2**63:
        raise AblateError(f"seed={config.seed}: expected less than 2^63")
    if not isinstance(config.compile, bool):
        raise AblateError(f"compile={config.compile}: expected true or false")
    if config.sample is not None:
        _check_sample(config.sample)
    for key in (
        "max_steps",
        "devices",
        "num_nodes",
        "accumulate_grad_batches",
        "log_every_n_steps",
        "val_check_interval",
    ):
        _whole(f"trainer.{key}", config.trainer[key], 1)
    _check_strategy(config.trainer.strategy)
    clip = config.trainer.gradient_clip_val
    if clip is not None and (not isinstance(clip, int | float) or isinstance(clip, bool) or not clip > 0):
        raise AblateError(f"trainer.gradient_clip_val={clip}: expected a number above 0, or null")
    accelerator = hardware.resolve_accelerator(config.trainer.accelerator, devices=config.trainer.devices)
    precision = hardware.resolve_precision(config.trainer.precision, accelerator)
    data, corpus = read_data(plain(config.data))
    model = DecoderConfig.from_dict(plain(config.model))
    _check_sizes(data, model)
    if accelerator == "cpu":
        check_memory(model, training=True)
    with torch.device(device):
        decoder = Decoder(model, config.seed)
    if config.trainer.strategy == "fsdp":
        _check_shardable(decoder)
    kernels = decoder.kernels(hardware.training_place(accelerator, precision, data.context, config.compile))
    optimizer, schedule = instantiate(config.optimizer), instantiate(config.scheduler)
    _try("optimizer", lambda: optimizer(decoder))
    _try("scheduler", lambda: [schedule(step, config.trainer.max_steps) for step in (0, config.trainer.max_steps)])
    return Parts(decoder, kernels, budget(decoder), data, corpus, optimizer, schedule, accelerator, precision)


def read_data(node: dict[str, Any]) -> tuple[Settings, Any]:
    """What a resolved node `data` says, and the corpus that it names, not yet open.

    Raises:
        AblateError: an unknown key, or a value that cannot be.
    """
    node = dict(node)
    kind = CORPORA.component(node.get("name")).Settings
    shared = {key: node.pop(key) for key in list(node) if key in kind.__dataclass_fields__}
    corpus = CORPORA.build(node)
    return kind(**check_options("data", "data", kind, shared)), corpus


def _check_strategy(strategy: Any) -> None:
    if strategy not in STRATEGIES:
        raise AblateError(f"trainer.strategy={strategy}: choose one of {', '.join(STRATEGIES)}")


def _check_shardable(decoder: Decoder) -> None:
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 0:
            raise AblateError(
                f"trainer.strategy=fsdp: {name} is a single number, which cannot be shared out by rows; make it "
                "torch.ones(1), or use trainer.strategy=ddp"
            )


def _check_sizes(settings: Settings, model: DecoderConfig) -> None:
    if settings.vocab_size > model.vocab_size:
        raise AblateError(
            f"model.vocab_size={model.vocab_size} has no room for data.vocab_size={settings.vocab_size}: "
            "leave model.vocab_size out, and it follows"
        )
    if settings.context > model.context:
        raise AblateError(f"data.context={settings.context} is beyond model.context={model.context}: raise that")


def _check_sample(sample: DictConfig) -> None:
    if not isinstance(sample.prompt, str):
        raise AblateError(f"sample.prompt={sample.prompt}: expected a text; quote it")
    if not sample.prompt:
        raise AblateError("sample.prompt: it is empty; give some text to go on from")
    _whole("sample.max_new_tokens", sample.max_new_tokens, 1)
    try:
        Sampling(sample.temperature)
    except AblateError as error:
        raise AblateError(f"sample.{error}") from error


def _whole(key: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise AblateError(f"{key}={value}: expected a whole number, at least {least}")


def _try(key: str, attempt: Any) -> None:
    try:
        attempt()
    except AblateError:
        raise
    except Exception as error:
        raise AblateError(f"{key}: {str(error).splitlines()[0]}") from error
