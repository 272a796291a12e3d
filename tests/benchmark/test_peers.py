"""transformers' Llama with our weights gives our logits; other architectures are refused."""

import sys

import pytest
import torch

from ablate import AblateError, build
from ablate.benchmark.generation import peers
from ablate.benchmark.generation.peers import llama_with_weights_of, peer_ways, time_generate
from ablate.benchmark.peers import check_peer
from ablate.generation import generate_tokens

pytest.importorskip("transformers")

SIZE = ["model.dim=32", "model.depth=3", "model.heads=4", "model.context=48", "model.vocab_size=97"]
LLAMAS = {
    "gqa_rope": ["gqa_rope"],
    "llama3": ["llama3"],
    "multi-head, wide heads": ["llama3", "model/attention=mha", "model.attention.head_dim=12"],
    "multi-query, slow rotation, tied": [
        "llama3", "model/attention=mqa", "model.position.theta=100", "model.norm.eps=0.1", "model.tie_embeddings=true",
    ],
}  # fmt: skip
OTHERS = {
    "model/norm=layernorm": "model.norm=layernorm",
    "model.norm.bias=true": "model.norm.bias=True",
    "model/placement=post": "model.placement=post",
    "model.placement.residual_scale=0.5": "model.placement.residual_scale=0.5",
    "model/pattern=local": "model.pattern=local",
    "model/position=alibi": "model.position=alibi",
    "model.position.fraction=0.5": "model.position.fraction=0.5",
    "model/ffn=moe": "model.ffn=moe",
    "model.bias=true": "model.bias=True",
    "model.attention.bias=[query]": "model.attention.bias=['query']",
    "model.attention.qk_norm=head": "model.attention.qk_norm=head",
    "model.attention.softcap=5": "model.attention.softcap=5.0",
    "model.logit_softcap=5": "model.logit_softcap=5.0",
    "model.scale_embeddings=true": "model.scale_embeddings=True",
    "model/attention=cycle model.attention.cycle=[mha,mqa]": "model.attention.cycle",
}


@torch.no_grad()
def stirred(preset: str, overrides: list[str]):
    """A model in which every weight has an effect, and no two logits are close."""
    model = build(preset, [*SIZE, *overrides]).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(3)
        else:
            parameter.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("choice", LLAMAS)
def test_greedy_ids_are_ours_with_every_cache(choice):
    model = stirred(LLAMAS[choice][0], LLAMAS[choice][1:])
    check_peer(model.config)
    peer = llama_with_weights_of(model)
    for batch, length, new_tokens in ((3, 7, 40), (1, 20, 4)):  # a shorter text after a longer one
        rows = torch.randint(97, (batch, length)).tolist()
        expected = generate_tokens(model, rows, new_tokens)
        assert len({tuple(row) for row in expected}) == batch and len(set(expected[0])) > 2
        for cache in ("dynamic", "static", None):
            ids, first, whole = time_generate(peer, rows, new_tokens, cache, compile=False)
            assert ids.tolist() == expected
            assert 0 < first < whole


def test_three_ways_of_theirs(capfd):
    ways = peer_ways(llama_with_weights_of(stirred("llama3", [])), compile=False)
    assert [way.name for way in ways] == [
        "transformers, dynamic cache",
        "transformers, static cache",
        "transformers, no cache",
    ]
    for way in ways:
        first, whole = way.time([[1, 2, 3], [4, 5, 6]], 2)
        assert 0 < first < whole
        assert way.time([[1, 2, 3]], 1)[0] > 0
    assert capfd.readouterr() == ("", "")  # no warnings of theirs


def test_the_caches_are_what_their_names_say(monkeypatch):
    peer, seen = llama_with_weights_of(stirred("llama3", [])), []
    forward = peer.forward

    def watched(*args, **kwargs):
        seen.append((type(kwargs.get("past_key_values")).__name__, kwargs["input_ids"].shape[1]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(peer, "forward", watched)
    for cache, kind in (("dynamic", "DynamicCache"), ("static", "StaticCache"), (None, "NoneType")):
        seen.clear()
        time_generate(peer, [[1, 2, 3, 4]], 3, cache, compile=False)
        assert seen == [(kind, width) for width in ([4, 1, 1] if cache else [4, 5, 6])]


@pytest.mark.parametrize("override", OTHERS)
def test_what_is_not_llama_is_refused(override):
    config = build("gqa_rope", [*SIZE, *override.split()]).config
    with pytest.raises(AblateError, match=r"^peers=true compares with Llama") as error:
        check_peer(config)
    assert f"has no {OTHERS[override]}: use model=llama3" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["model.position.theta=100", "model.norm.eps=0.5"])
def test_another_model_with_the_same_weights_is_found_out(override, monkeypatch):
    """The logits reveal an option of ours that `check_peer` accepts but transformers' Llama does not have."""
    model, other = stirred("llama3", [override]), build("llama3", SIZE).config
    monkeypatch.setattr(peers, "llama", lambda config, seed, original=peers.llama: original(other, seed))
    with pytest.raises(AblateError, match=r"^peers=true: transformers' Llama gives other logits"):
        llama_with_weights_of(model)


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(AblateError, match=r"^peers=true needs transformers: pip install 'ablate\[transformers\]'$"):
        check_peer(build("llama3", SIZE).config)
