"""Somebody else's implementation of the same architecture, in a bare loop."""

import time
from contextlib import nullcontext

import torch

from ablate.benchmark.training import Contestant, Setting
from ablate.errors import AblateError
from ablate.model.decoder import Decoder


def transformers_llama(setting: Setting, precision: str, masked: bool) -> Contestant:
    """transformers' LlamaForCausalLM, eager, SDPA, its own loss, AdamW; no clipping, no logging.

    masked: whether it gets restarting positions, from which it makes a document mask as ours does.

    Raises:
        AblateError: transformers is not installed, or the model is not of Llama's kind.
    """
    model = _llama(setting).to(setting.device).train()
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
        if setting.device.type == "cuda":
            torch.cuda.synchronize()

    def run() -> list[float]:
        step()
        seconds = []
        for _ in range(setting.steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        return seconds

    return Contestant("transformers, document mask" if masked else "transformers", precision, False, run)


def _llama(setting: Setting) -> torch.nn.Module:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise AblateError("peers=true needs transformers: pip install 'ablate[transformers]'") from error
    config = setting.config
    layer = config.layers()[0]
    names = [layer[axis]["name"] for axis in ("norm", "placement", "position", "pattern", "ffn")]
    if names != ["rmsnorm", "pre", "rope", "full", "swiglu"] or config.bias:
        raise AblateError("peers=true compares with Llama: use model=llama3")
    with torch.device("meta"):
        block = Decoder(config).blocks[0]
    torch.manual_seed(setting.seed)
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
            rope_theta=layer["position"]["theta"],
            rms_norm_eps=layer["norm"]["eps"],
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="sdpa",
        )
    )
