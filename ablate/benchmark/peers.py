"""Somebody else's implementation of the same architecture: transformers' LlamaForCausalLM."""

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ablate.benchmark.generation.measure import Way
from ablate.benchmark.training.measure import Contestant, Setting
from ablate.errors import AblateError
from ablate.generation.speed import wait
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# What Llama has on each axis, apart from sizes: an option is one of these.
_LLAMA = {
    "norm": {"name": ["rmsnorm"], "bias": [False]},
    "placement": {"name": ["pre"], "residual_scale": [1.0]},
    "attention": {"name": ["mha", "gqa", "mqa"], "bias": [None, False, []], "softcap": [None], "qk_norm": [None]},
    "position": {"name": ["rope"], "fraction": [1.0]},
    "pattern": {"name": ["full"]},
    "ffn": {"name": ["swiglu"]},
}
_NAMES = {  # theirs -> ours
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
TOLERANCE = 1e-3  # of the largest logit: rounding stays far below, another architecture does not


def check_peer(config: DecoderConfig) -> None:
    """Raises AblateError if transformers is not installed, or the model is not of Llama's kind."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise AblateError("peers=true needs transformers: pip install 'ablate[transformers]'") from error
    for option, value in (("bias", False), ("scale_embeddings", False), ("logit_softcap", None)):
        if getattr(config, option) != value:
            raise _refusal(f"model.{option}={getattr(config, option)}")
    layers = config.layers()
    for axis, options in _LLAMA.items():
        for option, valid in options.items():
            if layers[0][axis][option] not in valid:
                key = f"model.{axis}" if option == "name" else f"model.{axis}.{option}"
                raise _refusal(f"{key}={layers[0][axis][option]}")
        if any(layer[axis] != layers[0][axis] for layer in layers):
            raise _refusal(f"model.{axis}.cycle")


def _refusal(what: str) -> AblateError:
    return AblateError(f"peers=true compares with Llama, which has no {what}: use model=llama3, or leave peers out")


def llama(config: DecoderConfig, seed: int) -> "LlamaForCausalLM":
    """Theirs of the same size, eager, SDPA, in fp32 on the CPU, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layer = config.layers()[0]
    with torch.device("meta"):
        block = Decoder(config).blocks[0]
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=block.ffn.gate.out_features,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=block.attention.kv_heads,
            head_dim=block.attention.head_dim,
            max_position_embeddings=config.context,
            rope_parameters={"rope_type": "default", "rope_theta": layer["position"]["theta"]},
            rms_norm_eps=layer["norm"]["eps"],
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="sdpa",
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,  # nothing ends a text before its last new token
        )
    )


def transformers_llama(setting: Setting, precision: str, masked: bool) -> Contestant:
    """A training step of theirs in a bare loop: its own loss, AdamW; no clipping, no logging.

    masked: whether it gets restarting positions, from which it makes a document mask as ours does.
    """
    model = llama(setting.config, setting.seed).to(setting.device).train()
    optimizer = setting.optimizer(model)
    batch = {name: item.to(setting.device) for name, item in setting.batch.items() if isinstance(item, torch.Tensor)}
    inputs = {"input_ids": batch["tokens"], "use_cache": False}
    if masked:
        inputs["position_ids"] = batch["positions"]

    def step() -> None:
        mixed = torch.autocast(setting.device.type, torch.bfloat16) if "bf16" in precision else nullcontext()
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


def llama_with_weights_of(model: Decoder) -> "LlamaForCausalLM":
    """Theirs with our weights, in fp32 on the CPU, as ours must be.

    Raises:
        AblateError: it says something else than ours.
    """
    peer = llama(model.config, seed=0).eval()
    weights = model.state_dict()
    head_dim = model.blocks[0].attention.head_dim
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            weight = weights[_our_name(name)]
            turned = ".q_proj." in name or ".k_proj." in name
            parameter.copy_(_halves(weight, head_dim) if turned else weight)
        tokens = torch.randint(model.config.vocab_size, (2, min(16, model.config.context)))
        expected, found = model(tokens), peer(tokens, use_cache=False).logits
    if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
        raise AblateError("peers=true: transformers' Llama says something else with the same weights; leave peers out")
    return peer


def _our_name(theirs: str) -> str:
    for name, ours in _NAMES.items():
        theirs = theirs.replace(name, ours)
    return theirs


def _halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from neighbours (0, 1), (2, 3), ... to halves (0, d/2), (1, d/2 + 1), ...: their pairs."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def peer_ways(peer: "LlamaForCausalLM", compile: bool) -> list[Way]:
    """Their `generate`, greedy: with each of their caches, and without one.

    compile: the steps with the static cache are compiled where they do so by themselves, on a GPU.
    """

    def way(name: str, cache: str | None, compile: bool) -> Way:
        return Way(name, lambda rows, new_tokens: time_generate(peer, rows, new_tokens, cache, compile)[1:])

    return [
        way("transformers, dynamic cache", "dynamic", False),
        way("transformers, static cache", "static", compile),
        way("transformers, no cache", None, False),
    ]


def time_generate(
    peer: "LlamaForCausalLM", rows: list[list[int]], new_tokens: int, cache: str | None, compile: bool
) -> tuple[Tensor, float, float]:
    """The new ids `[B, new_tokens]`; seconds from the prompts' token ids to the first of them, and to the last."""
    from transformers import StaticCache, StoppingCriteriaList

    device, first = peer.device, []

    def stop(ids: Tensor, scores: object) -> Tensor:
        """Asked after every token: it never stops, and looks at the clock after the first."""
        if not first:
            wait(device)
            first.append(time.perf_counter() - start)
        return never

    wait(device)
    start = time.perf_counter()
    tokens = torch.tensor(rows, device=device)
    never = torch.zeros(len(rows), dtype=torch.bool, device=device)
    caches = {}
    if cache == "static":
        # One that `generate` makes itself is never shorter than those before it.
        length = tokens.shape[1] + new_tokens - 1
        caches = {"past_key_values": StaticCache(config=peer.config, max_cache_len=length)}
    out = peer.generate(
        tokens,
        do_sample=False,
        max_new_tokens=new_tokens,
        use_cache=cache is not None,
        disable_compile=not compile,
        stopping_criteria=StoppingCriteriaList([stop]),
        **caches,
    )
    wait(device)
    return out[:, tokens.shape[1] :], first[0], time.perf_counter() - start
