"""What the machine can do: precision, rate of matrix products, memory."""

import resource
import time
from collections.abc import Iterable

import torch

from ablate import check
from ablate.errors import AblateError
from ablate.model.kernels.kernel import Place
from ablate.model.kernels.linear import HAS_BF16_PRODUCTS, choose_product, linear, training_product

# Dense bf16 FLOP/s from the makers' data sheets; other devices are measured.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def resolve_accelerator(name: str, key: str = "trainer.accelerator", devices: int = 1) -> str:
    """`cpu` or `gpu` for the option `key`; `auto` takes a GPU if there is one.

    Raises:
        AblateError: there is no GPU, or there are fewer than `devices`.
    """
    check.choice(key, name, ("auto", "cpu", "gpu", "cuda"))
    found = torch.cuda.is_available()
    if name in ("gpu", "cuda") and not found:
        raise AblateError(f"{key}={name}: torch sees no CUDA device here; use {key}=cpu")
    if not found or name == "cpu":
        return "cpu"
    if devices > max(1, torch.cuda.device_count()):
        raise AblateError(
            f"trainer.devices={devices}: torch sees {torch.cuda.device_count()} CUDA device(s) here; lower it, "
            f"or use {key}=cpu"
        )
    return "gpu"


def device_of(accelerator: str) -> torch.device:
    """The device of Lightning's `accelerator`, `cpu` or `gpu`."""
    return torch.device("cuda" if accelerator == "gpu" else "cpu")


def resolve_precision(precision: str, accelerator: str) -> str:
    """Lightning's precision; `auto` takes bf16 where the hardware has it."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if has_bf16(accelerator) else "32-true"


def has_bf16(accelerator: str) -> bool:
    """Whether bf16 matrix products run in hardware."""
    if accelerator == "gpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return HAS_BF16_PRODUCTS


def training_place(accelerator: str, precision: str, tokens: int, compiled: bool) -> Place:
    """Where a run trains, for Lightning's `accelerator` and `precision` and rows of `tokens` tokens."""
    device, dtype = device_of(accelerator), training_dtype(precision)
    return Place(device.type, dtype, gradient=True, tokens=tokens, compiled=compiled)


def training_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products under Lightning's `precision`."""
    return torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32


def training_products(accelerator: str, precision: str) -> str:
    """The name of the product that computes a run's linear maps (`kernels.linear.PRODUCTS`)."""
    device = device_of(accelerator)
    return training_product(device.type, training_dtype(precision), autocast="mixed" in precision)


def decoding_products(device: str, dtype: torch.dtype, batches: Iterable[int], compiled: bool) -> list[str]:
    """The names of the ways in which decoding steps of these batch sizes compute their matrix products."""
    if device != "cpu":
        return ["torch"]
    return list(dict.fromkeys(choose_product(dtype, batch, gradient=False, compiled=compiled) for batch in batches))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of matrix products: the data sheet's for a known GPU in bf16, else measured."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, rate in _PEAKS.items():
            if known in name:
                return rate
    return measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product as models compute it, measured now: the best of twenty (0.3 s), because other
    processes slow some of them."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        for _ in range(20):
            start = time.perf_counter()
            linear(a, a, None)[0, 0].item()
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes: the device's peak allocation on a GPU, and this process's peak resident set."""
    memory = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        memory["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(device)
    return memory
