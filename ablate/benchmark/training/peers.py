"""Training steps of transformers' Llama."""

import time
from contextlib import nullcontext

import torch

from ablate.benchmark.peers import llama
from ablate.benchmark.training.measure import Contestant, Setting
from ablate.generation.speed import wait


def transformers_llama(setting: Setting, precision: str, masked: bool) -> Contestant:
    """transformers' Llama with its own loss, in a bare loop: no clipping, no logging.

    masked: gives it positions that restart at each document; from these it makes the same document mask as ours.
    """
    model = llama(setting.config, setting.seed).to(setting.device).train()
    optimizer = setting.optimizer(model)
    batch = {name: item.to(setting.device) for name, item in setting.batch.items() if isinstance(item, torch.Tensor)}
    inputs = {"input_ids": batch["tokens"], "use_cache": False}
    if masked:
        inputs["position_ids"] = batch["positions"]

    def step() -> None:
        mixed = torch.autocast(setting.device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
        with mixed:
            loss = model(**inputs, labels=batch["tokens"], shift_labels=batch["targets"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(setting.device)

    def run() -> list[float]:
        step()
        seconds = []
        for _ in range(setting.steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        return seconds

    return Contestant("transformers, document mask" if masked else "transformers", precision, False, run)
