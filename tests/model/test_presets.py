"""Presets match the models they are named after: transformers' logits and gradients, published parameter counts."""

import math
import time
from pathlib import Path

import pytest
import torch
from peers import PEERS, SIZE
from zoo import given, stirred

import ablate
from ablate.compose import config_dir
from ablate.model.axes.position import POSITIONS
from ablate.model.loss import next_token_loss

FULL_SIZE = ["llama3_1b", "llama3_8b", "llama3_70b", "llama3_405b", "phi3_mini"]
PRESETS = sorted({path.stem for path in (Path(config_dir()) / "model").glob("*.yaml")} - {"base", *FULL_SIZE})


# --- parity --------------------------------------------------------------------------------------------


def pair(name: str, *more: str):
    """The peer, its model, and our preset with its weights and `more` overrides."""
    pytest.importorskip("transformers")
    peer = PEERS[name]
    theirs, ours = peer.build(), ablate.build(peer.preset, [*SIZE, *peer.overrides, *more])
    weights = peer.weights(theirs)
    assert weights.keys() == {name for name, _ in ours.named_parameters()}
    ours.load_state_dict(weights, strict=False)
    return peer, theirs, ours


@pytest.mark.parametrize("name", PEERS)
def test_logits_and_gradients_are_those_of_transformers(name):
    peer, theirs, ours = pair(name)
    tokens = torch.randint(97, (2, 48))
    found, expected = ours(tokens), theirs(tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    direction = torch.randn(found.shape) / 97
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    assert max(g.abs().max() for g in gradients.values()) > 0.5
    torch.testing.assert_close(gradients, peer.gradients(theirs), rtol=0, atol=1e-5)


# Each changes one setting of a preset, or of the comparison.
DIFFERENT = [
    ("GPT-2", "model.norm.eps=1e-4"),
    ("GPT-2", "model.ffn.tanh=false"),
    ("GPT-3 as GPT-Neo", "model.pattern.window=6"),
    ("GPT-3 as GPT-Neo", "model.pattern.cycle=[local,full]"),
    ("GPT-J", "model.position.fraction=1"),
    ("MPT", "model/position=none"),
    ("Llama 3", "model.norm.eps=1e-6"),
    ("Llama 3", "model.position.theta=10000"),
    ("Llama 3.1", "model.position.low_freq_factor=2"),
    ("Llama 3.1", "model.position.high_freq_factor=3"),
    ("Llama, position interpolation", "model.position.factor=3"),
    ("Mistral", "model.norm.eps=1e-6"),
    ("Mistral", "model.position.theta=1000000"),
    ("Mistral", "model.pattern.window=4"),
    ("Mixtral", "model.norm.eps=1e-6"),
    ("Mixtral", "model.position.theta=10000"),
    ("Mixtral", "model.ffn.top_k=3"),
    ("Mixtral", "model.ffn.softmax=before"),
    ("Phi-3", "model.norm.eps=1e-6"),
    ("Phi-3", "model.position.theta=500000"),
    ("Phi-3", "model.pattern.window=6"),
    ("Gemma 2", "model.norm.eps=1e-5"),
    ("Gemma 2", "model.position.theta=500000"),
    ("Gemma 2", "model.pattern.window=6"),
    ("Gemma 2", "model.pattern.cycle=[full,local]"),
    ("Gemma 2", "model.attention.softcap=2"),
    ("Gemma 2", "model.logit_softcap=4"),
    ("Gemma 2", "model.scale_embeddings=false"),
    ("Gemma 2", "model.ffn.tanh=false"),
    ("OLMo 2", "model/placement=pre"),
    ("OLMo 2", "model.norm.eps=1e-5"),
    ("OLMo 2", "model.position.theta=10000"),
]


@pytest.mark.parametrize(("name", "override"), DIFFERENT)
@torch.no_grad()
def test_the_comparison_sees_a_preset_that_says_otherwise(name, override):
    _, theirs, ours = pair(name, override)
    tokens = torch.randint(97, (2, 48))
    assert (ours(tokens) - theirs(tokens, use_cache=False).logits).abs().max() > 5e-5


@torch.no_grad()
def test_positions_are_those_of_transformers():
    """What positions restart or skip, as in packed rows."""
    _, theirs, ours = pair("Llama 3.1")
    tokens, positions = torch.randint(97, (2, 48)), torch.randint(1000, (2, 48)).sort(dim=1).values
    expected = theirs(tokens, position_ids=positions, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    torch.testing.assert_close(ours(tokens, positions=positions), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 20, 112])
def test_the_slopes_of_alibi_are_those_of_bloom(heads):
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    # `[heads, 1, keys]`: the slope times the place of the key, which for the last query is ours but for a constant
    theirs = bloom.build_alibi_tensor(torch.ones(1, 9), heads, torch.float32)
    alibi = POSITIONS.build({"name": "alibi"}, given(heads=heads))
    ours = alibi.bias(torch.arange(heads).view(-1, 1, 1), torch.tensor(8), torch.arange(9))
    torch.testing.assert_close(ours - ours[..., :1], theirs, rtol=1e-6, atol=0)


def test_transformer_2017_is_torchs():
    """torch.nn.TransformerEncoder with a causal mask, on scaled embeddings and sinusoids of our own."""
    ours = stirred(ablate.build("transformer_2017", SIZE))
    layer = torch.nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, activation="relu", batch_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    with torch.no_grad():
        for block, peer in zip(ours.blocks, theirs.layers, strict=True):
            joint = [block.attention.query, block.attention.key, block.attention.value]
            peer.self_attn.in_proj_weight.copy_(torch.cat([m.weight for m in joint]))
            peer.self_attn.in_proj_bias.copy_(torch.cat([m.bias for m in joint]))
            parts = {
                peer.self_attn.out_proj: block.attention.out, peer.linear1: block.ffn.up, peer.linear2: block.ffn.out,
                peer.norm1: block.attention_norm, peer.norm2: block.ffn_norm,
            }  # fmt: skip
            for to, source in parts.items():
                to.load_state_dict(source.state_dict())
    tokens = torch.randint(97, (2, 48))
    # PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(the same)
    table = [[pos / 10000 ** (2 * (i // 2) / 32) for i in range(32)] for pos in range(48)]
    waves = torch.tensor([[(math.cos if i % 2 else math.sin)(a) for i, a in enumerate(row)] for row in table])
    mask = torch.nn.Transformer.generate_square_subsequent_mask(48)
    expected = theirs(ours.embedding(tokens) * 32**0.5 + waves, mask=mask, is_causal=True) @ ours.embedding.weight.t()
    found = ours(tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    direction = torch.randn(found.shape) / 97
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for block, peer in zip(ours.blocks, theirs.layers, strict=True):
        joint = torch.cat([m.weight.grad for m in (block.attention.query, block.attention.key, block.attention.value)])
        assert joint.abs().max() > 0.05
        torch.testing.assert_close(joint, peer.self_attn.in_proj_weight.grad, rtol=0, atol=1e-5)
        torch.testing.assert_close(block.ffn.up.weight.grad, peer.linear1.weight.grad, rtol=0, atol=1e-5)


# --- size ----------------------------------------------------------------------------------------------


def sizes(dim: int, depth: int, heads: int, vocab_size: int, context: int, *more: str) -> list[str]:
    return [
        f"model.dim={dim}", f"model.depth={depth}", f"model.heads={heads}", f"model.vocab_size={vocab_size}",
        f"model.context={context}", *more,
    ]  # fmt: skip


PUBLISHED = {  # preset, its size, its parameters
    "GPT-2": ("gpt2", sizes(768, 12, 12, 50257, 1024), 124_439_808),
    "GPT-3": ("gpt3", sizes(12288, 96, 96, 50257, 2048), 174_604_259_328),
    "Llama 3.2 1B": ("llama3_1b", [], 1_235_814_400),
    "Llama 3 8B": ("llama3_8b", [], 8_030_261_248),
    "Llama 3 70B": ("llama3_70b", [], 70_553_706_496),
    "Llama 3 405B": ("llama3_405b", [], 405_853_388_800),
    "Mistral 7B": (
        "mistral", sizes(4096, 32, 32, 32000, 8192, "model.attention.kv_heads=8", "model.ffn.hidden=14336"),
        7_241_732_096,
    ),
    "Mixtral 8x7B": (
        "mixtral", sizes(4096, 32, 32, 32000, 32768, "model.attention.kv_heads=8", "model.ffn.hidden=14336"),
        46_702_792_704,
    ),
    "Phi-3-mini": ("phi3_mini", [], 3_821_079_552),
    "Gemma 2 2B": (
        "gemma2",
        sizes(2304, 26, 8, 256000, 8192, "model.attention.kv_heads=4", "model.attention.head_dim=256",
              "model.ffn.hidden=9216"),
        2_614_341_888,
    ),
    "OLMo 2 7B": ("olmo2", sizes(4096, 32, 32, 100352, 4096, "model.ffn.hidden=11008"), 7_298_617_344),
}  # fmt: skip


def on_meta(preset: str, overrides: list[str]):
    with torch.device("meta"):
        return ablate.build(preset, overrides)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_are_as_many_as_published(name):
    preset, size, parameters = PUBLISHED[name]
    assert sum(p.numel() for p in on_meta(preset, size).parameters()) == parameters


def test_gpt3_has_175_billion_parameters():
    assert PUBLISHED["GPT-3"][2] == pytest.approx(175e9, rel=0.005)


def test_a_token_passes_through_two_of_mixtrals_eight_experts():
    assert ablate.budget(on_meta(*PUBLISHED["Mixtral 8x7B"][:2])).active == 12_879_925_248


@pytest.mark.parametrize("preset", ["llama3_8b", "llama3_70b", "llama3_405b"])
def test_llamas_of_full_size_have_the_options_of_llama3(preset):
    large, small = on_meta(preset, []).config.to_dict(), ablate.build("llama3").config.to_dict()
    assert large["context"] == 8192
    for config in (large, small):
        del config["attention"]["kv_heads"], config["ffn"]["hidden"]
        for key in ("dim", "depth", "heads", "context", "vocab_size"):
            del config[key]
    assert large == small


def test_405_billion_parameters_are_built_and_counted_in_seconds():
    start = time.perf_counter()
    budget = ablate.budget(on_meta("llama3_405b", []))
    assert time.perf_counter() - start < 15  # some 2 s; in memory, hours
    assert budget.total == budget.active == 405_853_388_800
    pairs = 8192 * 8193 / 2 / 8192
    matrices = 405_853_388_800 - 128256 * 16384 - (2 * 126 + 1) * 16384  # all but the token table and the norms
    assert budget.flops_per_token == 2 * matrices + 126 * 4 * 16384 * pairs
    assert budget.kv_bytes_per_token == 126 * 2 * 8 * 128 * 4


# --- at the size of base_model.yaml ----------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_and_its_cache_changes_nothing(preset):
    model, tokens = ablate.build(preset), torch.randint(4096, (1, 148))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = next_token_loss(model.hidden(tokens), model.head.weight, tokens.roll(-1, 1))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(4096), abs=0.5)
    assert losses[1] < losses[0]
    cache = model.new_cache(1, 148)
    with torch.no_grad():
        chunks = [model(part, cache=cache) for part in tokens.split([130, 12, *[1] * 6], dim=1)]  # past the window
        torch.testing.assert_close(torch.cat(chunks, 1), model(tokens), rtol=0, atol=1e-5)
    prompt = tokens[:, :126].tolist()
    cached, uncached = (ablate.generate_tokens(model, prompt, max_new_tokens=4, use_cache=use) for use in (True, False))
    assert cached == uncached
