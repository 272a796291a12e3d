"""transformers' LlamaForCausalLM: another implementation of the same architecture, to compare with."""

from typing import TYPE_CHECKING

import torch

from ablate.errors import AblateError
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# What Llama has on each axis, except sizes: axis -> option -> the valid values.
_LLAMA = {
    "norm": {"name": ["rmsnorm"], "bias": [False]},
    "placement": {"name": ["pre"], "residual_scale": [1.0]},
    "attention": {"name": ["mha", "gqa", "mqa"], "bias": [None, False, []], "softcap": [None], "qk_norm": [None]},
    "position": {"name": ["rope"], "fraction": [1.0]},
    "pattern": {"name": ["full"]},
    "ffn": {"name": ["swiglu"]},
}


def check_peer(config: DecoderConfig) -> None:
    """Raises AblateError if transformers is not installed, or its Llama cannot be a model of this configuration."""
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
    """transformers' Llama of the same size, with random weights: eager, SDPA, in fp32 on the CPU."""
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
            eos_token_id=None,  # so that no text ends before its last new token
        )
    )
