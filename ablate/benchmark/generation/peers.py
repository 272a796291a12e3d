"""Ways to generate with transformers' Llama, using the weights of our model."""

import time
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ablate.benchmark.generation.measure import Way
from ablate.benchmark.peers import llama
from ablate.errors import AblateError
from ablate.generation.speed import wait
from ablate.model.decoder import Decoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_NAMES = {  # parts of parameter names: theirs -> ours
    "model.embed_tokens": "embedding",
    "model.layers": "blocks",
    "model.norm": "final_norm",
    "lm_head": "head",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "mlp.gate_proj": "ffn.gate",
    "mlp.up_proj": "ffn.up",
    "mlp.down_proj": "ffn.out",
}
TOLERANCE = 1e-3  # of the largest logit: rounding differs by far less, another architecture by more

Cache = Literal["dynamic", "static"]


def llama_with_weights_of(model: Decoder) -> "LlamaForCausalLM":
    """transformers' Llama with the weights of `model`, which must be in fp32 on the CPU.

    Raises:
        AblateError: their logits differ.
    """
    peer = llama(model.config, seed=0).eval()
    weights = model.state_dict()
    head_dim = model.blocks[0].attention.head_dim
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            weight = weights[_our_name(name)]
            rotated = ".q_proj." in name or ".k_proj." in name
            parameter.copy_(_pairs_as_halves(weight, head_dim) if rotated else weight)
        tokens = torch.randint(model.config.vocab_size, (2, min(16, model.config.context)))
        ours, theirs = model(tokens), peer(tokens, use_cache=False).logits
    if not (theirs - ours).abs().max() <= TOLERANCE * ours.abs().max():
        raise AblateError("peers=true: transformers' Llama gives other logits with the same weights; leave peers out")
    return peer


def _our_name(theirs: str) -> str:
    for name, ours in _NAMES.items():
        theirs = theirs.replace(name, ours)
    return theirs


def _pairs_as_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Reorders the rows of each head, `[heads * head_dim, D]`.

    Our rotary positions turn neighbours (0, 1), (2, 3), ...; theirs turn halves (0, d/2), (1, d/2 + 1), ...
    """
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def peer_ways(peer: "LlamaForCausalLM", compile: bool) -> list[Way]:
    """Greedy `generate` of transformers: with each of its caches, and without one.

    compile: lets `generate` compile the steps with its static cache, which it does on a GPU only.
    """
    caches: dict[str, tuple[Cache | None, bool]] = {
        "transformers, dynamic cache": ("dynamic", False),
        "transformers, static cache": ("static", compile),
        "transformers, no cache": (None, False),
    }
    return [Way(name, partial(_seconds, peer, cache, compiled)) for name, (cache, compiled) in caches.items()]


def _seconds(
    peer: "LlamaForCausalLM", cache: Cache | None, compile: bool, rows: list[list[int]], new_tokens: int
) -> tuple[float, float]:
    return time_generate(peer, rows, new_tokens, cache, compile)[1:]


def time_generate(
    peer: "LlamaForCausalLM", rows: list[list[int]], new_tokens: int, cache: Cache | None, compile: bool
) -> tuple[Tensor, float, float]:
    """The new ids `[B, new_tokens]`; seconds from the prompts' token ids to the first of them, and to the last."""
    from transformers import StaticCache, StoppingCriteriaList

    device, first_token_s = peer.device, []

    def note_first_token(ids: Tensor, scores: object) -> Tensor:
        """A stopping criterion, which `generate` calls after every token. It never stops: it reads the clock once."""
        if not first_token_s:
            wait(device)
            first_token_s.append(time.perf_counter() - start)
        return never

    wait(device)
    start = time.perf_counter()
    tokens = torch.tensor(rows, device=device)
    never = torch.zeros(len(rows), dtype=torch.bool, device=device)
    cache_options = {}
    if cache == "static":
        # `generate` would reuse its longest cache so far; this one has the right length.
        length = tokens.shape[1] + new_tokens - 1
        cache_options = {"past_key_values": StaticCache(config=peer.config, max_cache_len=length)}
    out = peer.generate(
        tokens,
        do_sample=False,
        max_new_tokens=new_tokens,
        use_cache=cache is not None,
        disable_compile=not compile,
        stopping_criteria=StoppingCriteriaList([note_first_token]),
        **cache_options,
    )
    wait(device)
    return out[:, tokens.shape[1] :], first_token_s[0], time.perf_counter() - start
