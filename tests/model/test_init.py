"""Initial weights and weight decay follow from the roles that modules declare, not from names or shapes."""

import hashlib
from typing import ClassVar

import pytest
import torch
from torch import nn
from zoo import build, config, given, small

import ablate
from ablate.model.axes.ffn import FeedForward
from ablate.model.decoder import Decoder
from ablate.model.given import Given
from ablate.model.init import initialise
from ablate.model.linear import Linear
from ablate.model.roles import DRAWN, Role, declared

SIZES = ["model.dim=64", "model.depth=2", "model.heads=4", "model.context=32", "model.vocab_size=128"]
NARROW = ["model.attention.head_dim=null", "model.attention.kv_heads=2", "model.ffn.hidden=96"]
RECORDED = {  # SHA-256 of names and weights at seed 3, its first 16 digits
    ("gqa_rope",): "ca167d29b5f14a30",
    ("gqa_rope", "model/ffn=moe", "model.bias=true", "model.ffn.experts=3"): "8a975b3b8cd3a7a3",
    ("gqa_rope", "model/position=learned", "model.tie_embeddings=false"): "c79300094d662db8",
    ("transformer_2017",): "0608e6714df995b8",
    ("gpt2",): "a46493a04b5d7b9e",
    ("gpt3",): "a46493a04b5d7b9e",
    ("llama3",): "7fc6f0b801697420",
    ("mistral",): "7fc6f0b801697420",
    ("mixtral",): "a963fa15d822b8ad",
    ("phi3",): "41c1487d5499d624",
    ("gemma2",): "3f8b898a8b246b08",
    ("olmo2",): "ce281afb0d4e30e6",
    ("llama3_1b", *NARROW): "b1a12550fa7d5007",
    ("phi3_mini", NARROW[-1]): "ade3799bcc09b2e0",
}


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="other processors round otherwise"
)
@pytest.mark.parametrize("what", RECORDED, ids=" ".join)
def test_initial_weights_are_those_recorded(what):
    preset, *overrides = what
    digest = hashlib.sha256()
    for name, tensor in ablate.build(preset, [*SIZES, *overrides], seed=3).state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest()[:16] == RECORDED[what]


# --- roles -------------------------------------------------------------------------------------------


class Own(FeedForward):
    """Maps by other names, a matrix in no map, a gain."""

    roles: ClassVar = {"mixing": Role.MATRIX}

    def __init__(self, given: Given):
        super().__init__()
        self.rise = nn.Linear(given.dim, 64, bias=True)
        self.proj = Linear(64, given.dim, True, residual_out=True)
        self.mixing = nn.Parameter(torch.zeros(64, 64))
        self.gain = nn.Parameter(torch.full((2, 3), 7.0))


@pytest.fixture
def own() -> Own:
    own = Own(given(dim=32))
    initialise(own, dim=32, depth=8, seed=0)
    return own


def test_the_map_to_the_residual_stream_starts_smaller_whatever_it_is_called(own):
    std = (2 / (5 * 32)) ** 0.5
    assert own.rise.weight.std().item() == pytest.approx(std, rel=0.05)
    assert own.proj.weight.std().item() == pytest.approx(std / 4, rel=0.05)  # 1 / sqrt(2 * 8 layers)


def test_what_a_module_declares_is_drawn_and_what_it_does_not_is_left_to_it(own):
    assert own.mixing.std().item() == pytest.approx((2 / (5 * 32)) ** 0.5, rel=0.05)
    assert (own.gain == 7).all()
    assert not own.rise.bias.any() and not own.proj.bias.any()


def test_roles_are_told_by_their_modules(own):
    assert {one.name: one.role for one in declared(own)} == {
        "rise.weight": Role.MATRIX,
        "rise.bias": Role.VECTOR,
        "proj.weight": Role.MATRIX,
        "proj.bias": Role.VECTOR,
        "mixing": Role.MATRIX,
        "gain": Role.VECTOR,
    }


def test_every_parameter_of_a_decoder_has_its_role():
    model = build(ffn=small("ffn", "moe"), position="learned", norm="layernorm", bias=True, tie_embeddings=False)
    roles = {one.name: one.role for one in declared(model)}
    assert list(roles) == [name for name, _ in model.named_parameters()]
    assert roles["embedding.weight"] == roles["positions.0.table.weight"] == Role.EMBEDDING
    assert roles["head.weight"] == Role.HEAD
    assert roles["blocks.0.ffn.experts.gate.weight"] == Role.EXPERTS
    assert roles["blocks.0.ffn.router.weight"] == roles["blocks.0.attention.query.weight"] == Role.MATRIX
    vectors = {name for name, role in roles.items() if role == Role.VECTOR}
    assert vectors == {name for name in roles if "norm" in name or name.endswith(".bias")}


def test_a_tied_head_is_the_embedding():
    heads = [one for one in declared(Decoder(config(tie_embeddings=True))) if one.role == Role.HEAD]
    assert not heads


@pytest.mark.parametrize("preset", ["gqa_rope", "mixtral", "gpt2"])
def test_what_is_drawn_is_what_has_two_dimensions_in_every_preset(preset):
    """So was weight decay decided before there were roles: the same numbers come out."""
    for one in declared(ablate.build(preset, SIZES)):
        assert (one.role in DRAWN) == (one.parameter.ndim >= 2), one.name
