"""Made-up results of the generation benchmark: consistent, with figures like those of a small model."""

import json
from itertools import product
from pathlib import Path
from typing import Any

DEPTH, HEADS, HEAD_DIM = 8, 8, 64
CONTEXTS = [64, 128, 256, 512, 1024, 2048, 4096]
PEERS = {"transformers, dynamic cache": 0.53, "transformers, static cache": 0.31, "transformers, no cache": 0.05}


def sample(
    label: str = "mha",
    kv_heads: int = HEADS,
    *,
    window: int | None = None,
    batches: tuple[int, ...] = (1, 4, 16),
    prompts: tuple[int, ...] = (32,),
    new_tokens: tuple[int, ...] = (32, 128, 480),
    uncached: bool = True,
    peers: bool = True,
    cuda: bool = False,
) -> dict[str, Any]:
    """One generation.json as a dict; with a speed-up and a ratio to transformers if both sides are present."""
    itemsize = 2 if cuda else 4
    kv_bytes = 2 * DEPTH * kv_heads * HEAD_DIM * itemsize
    weight_bytes = 31_597_056 * itemsize
    limits = {"bandwidth_bytes_per_s": 2.9e12 if cuda else 2.61e10, "flops_per_s": 6.2e14 if cuda else 1.5e11}
    points = []
    for batch, prompt, new in product(batches, prompts, new_tokens):
        held = batch * min(prompt + new / 2, window or 10**9) * kv_bytes
        limit = max((weight_bytes + held) / limits["bandwidth_bytes_per_s"], 6.4e7 * batch / limits["flops_per_s"])
        step = 1.7 * limit + (3e-4 if cuda else 1e-3)
        rate = batch * new / (step * (new + prompt / 8))
        slow = rate / (0.9 + (prompt + new) / (36 + kv_heads))
        best = rate * PEERS["transformers, dynamic cache"]
        cached = _point("cached", batch, prompt, new, rate, step)
        cached |= {
            "cache_bytes": int(batch * min(prompt + new - 1, window or 10**9) * kv_bytes),
            "limit_token_s": limit if new > 1 else None,
            "fraction_of_limit": limit / step if new > 1 else None,
            "speedup": rate / slow if uncached else None,
            "times_peer": rate / best if peers else None,
        }
        here = [cached]
        if uncached:
            here.append(_point("uncached", batch, prompt, new, slow, step * rate / slow) | {"cache_bytes": 0})
        if peers:
            here += [_point(way, batch, prompt, new, rate * part, step / part) for way, part in PEERS.items()]
        for point in here:
            point["peak_memory_bytes"] = int(2e7 + 3 * held) if cuda else None
        points += here
    return {
        "task": "generation",
        "format": 1,
        "label": label,
        "model": {"dim": 512, "depth": DEPTH, "heads": HEADS, "context": 512, "attention": {"name": label}},
        "budget": {
            "total": 31_597_056,
            "active": 31_597_056,
            "non_embedding": 29_500_000,
            "flops_per_token": 6.4e7,
            "training_flops_per_token": 1.92e8,
            "kv_bytes_per_token": kv_bytes,
        },
        "weight_bytes": weight_bytes,
        "device": "cuda" if cuda else "cpu",
        "gpu": "NVIDIA H100 80GB HBM3" if cuda else None,
        "threads": 2,
        "precision": "bfloat16" if cuda else "float32",
        "compile": False,
        "rounds": 5,
        "limits": limits,
        "points": points,
        "cache_memory": _memory(kv_heads, window, itemsize),
        "command": f"benchmark.py task=generation model/attention={label}",
        "versions": {"python": "3.12.4", "torch": "2.13.0", "tokenizers": None},
        "machine": {"platform": "Linux-6.1.0-x86_64-with-glibc2.36", "threads": 2, "gpu": None},
        "git": {"revision": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
    }


def _point(way: str, batch: int, prompt: int, new: int, rate: float, step: float) -> dict[str, Any]:
    return {
        "way": way,
        "batch": batch,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "first_token_s": _measured(step * (1 + prompt / 8)),
        "token_s": _measured(step) if new > 1 else None,
        "tokens_per_s": _measured(rate),
        "cache_bytes": None,
        "limit_token_s": None,
        "fraction_of_limit": None,
        "speedup": None,
        "times_peer": None,
    }


def _measured(median: float) -> dict[str, float]:
    return {"median": median, "min": 0.94 * median, "max": 1.09 * median}


def _memory(kv_heads: int, window: int | None, itemsize: int) -> list[dict[str, Any]]:
    names = {HEADS: "mha", 1: "mqa"}
    lines = []
    for heads, reach in product(sorted({HEADS, 2, 1, kv_heads}, reverse=True), (None, window or 128)):
        name = names.get(heads, f"gqa ({heads} kv heads)") + (f", local (window {reach})" if reach else "")
        per_token = 2 * DEPTH * heads * HEAD_DIM * itemsize
        points = [[context, per_token * min(context, reach or context)] for context in CONTEXTS]
        lines.append({"name": name, "this": (heads, reach) == (kv_heads, window), "points": points})
    return lines


def write(folder: Path, data: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generation.json").write_text(json.dumps(data))
