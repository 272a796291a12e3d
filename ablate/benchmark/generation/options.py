"""The options of `task=generation`, checked before any work."""

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ablate.benchmark.generation.measure import Place
from ablate.errors import AblateError
from ablate.hardware import has_bf16, resolve_accelerator

PRECISIONS = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True)
class Options:
    """What is measured and how; which model is another matter."""

    places: list[Place]
    rounds: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    compile: bool
    uncached: bool
    peers: bool

    @classmethod
    def of(cls, config: DictConfig) -> "Options":
        """From `conf/benchmark.yaml` and the overrides.

        Raises:
            AblateError: an option of the wrong type or out of range, a device that is not there.
        """
        prompts, news, batches = (_counts(config, key) for key in ("prompt_tokens", "new_tokens", "batch"))
        places = [Place(batch, prompt, new) for prompt in prompts for new in news for batch in batches]
        rounds, seed = config.rounds, config.seed
        if not _whole(rounds, 1):
            raise AblateError(f"rounds={rounds}: expected a whole number, at least 1")
        if not _whole(seed, 0):
            raise AblateError(f"seed={seed}: expected a whole number, at least 0")
        flags = {key: config[key] for key in ("compile", "uncached", "peers")}
        for key, value in flags.items():
            if not isinstance(value, bool):
                raise AblateError(f"{key}={value}: expected true or false")
        accelerator = resolve_accelerator(config.accelerator, "accelerator")
        device = torch.device("cuda" if accelerator == "gpu" else "cpu")
        return cls(places, rounds, seed, device, _dtype(config.precision, accelerator), **flags)

    def check_context(self, context: int, remedy: str) -> None:
        """Raises AblateError if a prompt and its new tokens are more than the model's context."""
        place = max(self.places, key=lambda place: place.prompt_tokens + place.new_tokens)
        total = place.prompt_tokens + place.new_tokens
        if total > context:
            raise AblateError(
                f"prompt_tokens={place.prompt_tokens} and new_tokens={place.new_tokens} make {total}, more than "
                f"model.context={context}: {remedy}"
            )


def _counts(config: DictConfig, key: str) -> list[int]:
    """A list of numbers from a list or from one of them; each once."""
    given = config[key]
    values = OmegaConf.to_container(given) if OmegaConf.is_list(given) else [given]
    if not values or not all(_whole(value, 1) for value in values):
        shown = f"[{','.join(map(str, values))}]" if OmegaConf.is_list(given) else given
        raise AblateError(f"{key}={shown}: expected a whole number, at least 1, or a list such as {key}=[1,4]")
    return list(dict.fromkeys(values))


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _dtype(precision: str | None, accelerator: str) -> torch.dtype:
    if precision is None:
        return torch.bfloat16 if accelerator == "gpu" and has_bf16("gpu") else torch.float32
    if precision not in PRECISIONS:
        raise AblateError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}, or null")
    return PRECISIONS[precision]
