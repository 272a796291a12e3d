"""Other people's models at the size of a test, and their weights under our names."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn
from zoo import stirred

SIZE = ["model.dim=32", "model.depth=3", "model.heads=4", "model.context=48", "model.vocab_size=97"]
Weights = dict[str, Tensor]

# Names in transformers' models of Llama's kind. Longer names come first, because they contain shorter ones.
LLAMA = {
    "model.embed_tokens": "embedding",
    "model.layers": "blocks",
    "model.norm": "final_norm",
    "lm_head": "head",
    "self_attn.q_": "attention.query_",
    "self_attn.k_": "attention.key_",
    "self_attn.v_": "attention.value_",
    "self_attn.o_": "attention.out_",
    "mlp.gate_": "ffn.gate_",
    "mlp.up_": "ffn.up_",
    "mlp.down_": "ffn.out_",
    "_proj": "",
}
PRE = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
REORDERED = {"post_attention_layernorm": "attention_norm", "post_feedforward_layernorm": "ffn_norm"}
SANDWICH = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_out_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_out_norm",
}


@dataclass
class Peer:
    """transformers' `kind` and the overrides that make `preset` the same; `ours`: its weights, under our names."""

    preset: str
    kind: str
    options: dict
    ours: Callable[[Weights], Weights]
    overrides: list[str] = field(default_factory=list)
    norm_offset: float = 0.0  # what its norms add to their weights
    query_scale: float = 1.0  # sqrt(head_dim) where its attention does not divide by that

    def build(self) -> nn.Module:
        """In eval mode, with no weight at a value that hides it."""
        import transformers

        config = getattr(transformers, f"{self.kind}Config")(**self.options, attn_implementation="eager")
        name = self.kind + ("LMHeadModel" if self.kind == "GPT2" else "ForCausalLM")
        model = stirred(getattr(transformers, name)(config).eval())
        if getattr(model.lm_head, "bias", None) is not None:
            nn.init.zeros_(model.lm_head.bias)  # ours has none
        return model

    def weights(self, model: nn.Module) -> Weights:
        found = self.ours({name: p.detach() for name, p in model.named_parameters()})
        for name in found:
            if "norm" in name:
                found[name] = found[name] + self.norm_offset
            if "query.weight" in name:
                found[name] = found[name] * self.query_scale
        return found

    def gradients(self, model: nn.Module) -> Weights:
        found = self.ours({name: p.grad for name, p in model.named_parameters()})
        return {name: g / self.query_scale if "query.weight" in name else g for name, g in found.items()}


def renamed(weights: Weights, *tables: dict[str, str]) -> Weights:
    found = {}
    for name, weight in weights.items():
        for table in tables:
            for theirs, ours in table.items():
                name = name.replace(theirs, ours)
        found[name] = weight
    return found


def interleaved(weight: Tensor, head_dim: int = 8) -> Tensor:
    """Rows of each head from halves (0, d/2), (1, d/2 + 1), ... to neighbours: what their rotation pairs to ours."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def from_llama(norms: dict[str, str] = PRE, head_dim: int = 8) -> Callable[[Weights], Weights]:
    def ours(weights: Weights) -> Weights:
        found = renamed(weights, norms, LLAMA)
        return {
            name: interleaved(w, head_dim) if ".query" in name or ".key" in name else w for name, w in found.items()
        }

    return ours


def from_phi3(weights: Weights) -> Weights:
    apart = {}
    for name, weight in weights.items():
        if "qkv_proj" in name:
            apart |= {name.replace("qkv", part): w for part, w in zip("qkv", weight.chunk(3), strict=True)}
        elif "gate_up_proj" in name:
            apart |= {name.replace("gate_up", p): w for p, w in zip(("gate", "up"), weight.chunk(2), strict=True)}
        else:
            apart[name] = weight
    return from_llama()(apart)


def from_mixtral(weights: Weights) -> Weights:
    """Its experts are three-dimensional: `[E, gate and up, in]` and `[E, out, hidden]`."""
    apart = {}
    for name, weight in renamed(weights, {"mlp.gate.": "ffn.router.", "mlp.experts": "ffn.experts"}).items():
        if "gate_up_proj" in name:
            for part, w in zip(("gate", "up"), weight.chunk(2, dim=1), strict=True):
                apart[name.replace("gate_up_proj", f"{part}.weight")] = w
        else:
            apart[name.replace("experts.down_proj", "experts.out.weight")] = weight
    return from_llama()(apart)


def from_gpt2(weights: Weights) -> Weights:
    """Its matrices are stored `[in, out]`, those of queries, keys and values as one."""
    names = {
        "transformer.wte": "embedding",
        "transformer.wpe": "positions.0.table",
        "transformer.ln_f": "final_norm",
        "transformer.h": "blocks",
        "attn.c_proj": "attention.out",
        "mlp.c_fc": "ffn.up",
        "mlp.c_proj": "ffn.out",
        "ln_1": "attention_norm",
        "ln_2": "ffn_norm",
    }
    found = {}
    for name, weight in renamed(weights, names).items():
        block = name.startswith("blocks")
        weight = weight.t() if block and weight.ndim == 2 else weight
        if "c_attn" in name:
            for part, w in zip(("query", "key", "value"), weight.chunk(3), strict=True):
                found[name.replace("attn.c_attn", f"attention.{part}")] = w
        else:
            found[name] = weight
    return found


GPT_NEO_NAMES = {
    "transformer.wte": "embedding",
    "transformer.wpe": "positions.0.table",
    "transformer.ln_f": "final_norm",
    "transformer.h": "blocks",
    "attn.attention.": "attention.",
    "attn.": "attention.",
    "mlp.c_fc": "ffn.up",
    "mlp.c_proj": "ffn.out",
    "mlp.fc_in": "ffn.up",
    "mlp.fc_out": "ffn.out",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "lm_head": "head",
}


def from_gpt_neo(weights: Weights) -> Weights:
    return renamed(weights, GPT_NEO_NAMES, {"ln_1": "attention_norm", "ln_2": "ffn_norm"})


def from_gptj(weights: Weights) -> Weights:
    """Its rotation pairs neighbours, as ours does. The bias of its head is left out."""
    return {name: w for name, w in renamed(weights, GPT_NEO_NAMES, {"ln_1": "norm"}).items() if name != "head.bias"}


def from_mpt(weights: Weights) -> Weights:
    names = {
        "transformer.wte": "embedding",
        "transformer.norm_f": "final_norm",
        "transformer.blocks": "blocks",
        "attn.out_proj": "attention.out",
        "ffn.up_proj": "ffn.up",
        "ffn.down_proj": "ffn.out",
        "norm_1": "attention_norm",
        "norm_2": "ffn_norm",
    }
    found = renamed(weights, names)
    for name in [name for name in found if "Wqkv" in name]:
        parts = zip(("query", "key", "value"), found.pop(name).chunk(3), strict=True)
        found |= {name.replace("attn.Wqkv", f"attention.{part}"): w for part, w in parts}
    return found


def llama_options(**changes) -> dict:
    return {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, **changes,
    }  # fmt: skip


def rope(theta: float, kind: str = "default", **more) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


HIDDEN = "model.ffn.hidden=56"
GPT2 = {
    "vocab_size": 97, "n_positions": 48, "n_embd": 32, "n_layer": 3, "n_head": 4, "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GPTJ = {**GPT2, "rotary_dim": 4, "tie_word_embeddings": False}
GPT_NEO = {
    "vocab_size": 97, "max_position_embeddings": 48, "hidden_size": 32, "num_layers": 3, "num_heads": 2,
    "attention_types": [[["global", "local", "global"], 1]], "window_size": 5, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
MPT = {
    "vocab_size": 97, "d_model": 48, "n_layers": 3, "expansion_ratio": 4, "max_seq_len": 48, "n_heads": 6,
    "tie_word_embeddings": True,
}  # fmt: skip
MPT_OURS = [
    "model.dim=48", "model.heads=6", "model/position=alibi", "model.bias=false", "model.norm.bias=false",
    "model.ffn.tanh=false",
]  # fmt: skip
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 40}
LLAMA3_OURS = [HIDDEN, "model/position=rope_llama3", "model.position.theta=500", "model.position.original_context=40"]

PEERS = {
    "GPT-2": Peer("gpt2", "GPT2", {**GPT2, "activation_function": "gelu_new"}, from_gpt2),
    "GPT-2, exact GELU": Peer(
        "gpt2", "GPT2", {**GPT2, "activation_function": "gelu"}, from_gpt2, ["model.ffn.tanh=false"]
    ),
    "GPT-3 as GPT-Neo": Peer(
        "gpt3", "GPTNeo", GPT_NEO, from_gpt_neo,
        ["model.heads=2", "model.pattern.window=5", "model.attention.bias=[out]"], query_scale=4.0,
    ),
    "GPT-J": Peer(
        "gpt2", "GPTJ", GPTJ, from_gptj,
        ["model/placement=parallel", "model/position=rope", "model.position.fraction=0.5", "model.attention.bias=[]",
         "model.tie_embeddings=false"],
    ),
    "MPT": Peer("gpt2", "Mpt", MPT, from_mpt, MPT_OURS),
    "Llama 3": Peer("llama3", "Llama", llama_options(**rope(500000.0)), from_llama(), [HIDDEN]),
    "Llama 3.1": Peer(
        "llama3", "Llama", llama_options(**rope(500.0, "llama3", **LLAMA3_ROPE)), from_llama(), LLAMA3_OURS
    ),
    "Llama, position interpolation": Peer(
        "llama3", "Llama", llama_options(**rope(500.0, "linear", factor=4.0)), from_llama(),
        [HIDDEN, "model/position=rope_linear", "model.position.theta=500", "model.position.factor=4"],
    ),
    "Mistral": Peer(
        "mistral", "Mistral", llama_options(sliding_window=5, **rope(10000.0)), from_llama(),
        [HIDDEN, "model.pattern.window=5"],
    ),
    "Mixtral": Peer(
        "mixtral", "Mixtral", llama_options(num_local_experts=8, num_experts_per_tok=2, **rope(1000000.0)),
        from_mixtral, [HIDDEN],
    ),
    "Phi-3": Peer(
        "phi3", "Phi3", llama_options(num_key_value_heads=4, sliding_window=5, **rope(10000.0)), from_phi3,
        [HIDDEN, "model.pattern.window=5"],
    ),
    "OLMo 2": Peer(
        "olmo2", "Olmo2", llama_options(num_key_value_heads=4, rms_norm_eps=1e-6, **rope(500000.0)),
        from_llama(REORDERED), [HIDDEN],
    ),
    "Qwen 2": Peer(
        "llama3", "Qwen2", llama_options(**rope(500000.0)), from_llama(),
        [HIDDEN, "model.attention.bias=[query,key,value]"],
    ),
    "Qwen 3": Peer(
        "llama3", "Qwen3", llama_options(rms_norm_eps=1e-6, head_dim=12, **rope(500000.0)), from_llama(head_dim=12),
        [HIDDEN, "model.norm.eps=1e-6", "model.attention.qk_norm=head", "model.attention.head_dim=12"],
    ),
    "Gemma 2": Peer(
        "gemma2", "Gemma2",
        llama_options(
            rms_norm_eps=1e-6, tie_word_embeddings=True, head_dim=12, query_pre_attn_scalar=12, sliding_window=5,
            attn_logit_softcapping=1.5, final_logit_softcapping=3.0, **rope(10000.0),
        ),
        from_llama(SANDWICH, head_dim=12),
        [HIDDEN, "model.attention.head_dim=12", "model.pattern.window=5", "model.attention.softcap=1.5",
         "model.logit_softcap=3"],
        norm_offset=1.0,
    ),
}  # fmt: skip
