"""Laws 9 and 12: a decoder's initial weights, its parameter count, and its round trip through files."""

import json

import pytest
import torch
from zoo import (
    build,
    config,
    documents_of,
    embedded,
    label,
    labels,
    models,
    nodes,
    random_tokens,
    singles,
)

from ablate.data import Tokenizer
from ablate.errors import AblateError
from ablate.model.config import AXES, DecoderConfig
from ablate.model.decoder import Decoder
from ablate.model.loss import next_token_loss
from ablate.run import load_model, save_model


def same_start(a: Decoder, b: Decoder) -> set[str]:
    """The names of the parameters that both have in one shape; asserts that they are bit-identical."""
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    shared = {name for name in ours.keys() & theirs.keys() if ours[name].shape == theirs[name].shape}
    for name in shared:
        assert torch.equal(ours[name], theirs[name]), name
    return shared


# --- initial weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", models(), ids=labels)
def test_two_builds_are_bit_identical(row):
    a, b = Decoder(config(**row), seed=3), Decoder(config(**row), seed=3)
    assert same_start(a, b) == {name for name, _ in b.named_parameters()}


def test_another_seed_is_another_start():
    for name, parameter in Decoder(config(), seed=3).named_parameters():
        if parameter.ndim > 1:
            assert not torch.equal(parameter, dict(Decoder(config(), seed=4).named_parameters())[name])


@pytest.mark.parametrize("axis", AXES)
def test_parts_that_two_arms_share_start_alike_whatever_else_differs(axis):
    base = Decoder(config(), seed=3)
    for node in nodes(axis):
        shared = same_start(base, Decoder(config(**{axis: node}), seed=3))
        assert {"embedding.weight", "blocks.0.attention.query.weight", "blocks.1.attention.out.weight"} <= shared


def test_the_embedding_starts_alike_tied_or_not():
    tied, untied = (Decoder(config(tie_embeddings=tie), seed=3) for tie in (True, False))
    assert "embedding.weight" in same_start(tied, untied)


def test_no_two_matrices_of_one_shape_start_alike():
    seen = {}
    for name, parameter in Decoder(config(tie_embeddings=False, attention="mha")).named_parameters():
        if parameter.ndim > 1:
            key = tuple(parameter.flatten()[:8].tolist())
            assert key not in seen, f"{name} starts as {seen[key]}"
            seen[key] = name


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_what_writes_to_the_residual_stream_starts_smaller_with_depth(depth):
    model = Decoder(config(dim=64, depth=depth, bias=True))
    std = (2 / (5 * 64)) ** 0.5
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            expected = std / (2 * depth) ** 0.5 if name.endswith(".out") else std
            assert module.weight.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(module.weight.mean().item()) < expected / 10, name
            if getattr(module, "bias", None) is not None:
                assert not module.bias.any(), name


def test_learned_positions_start_half_as_large_as_tokens():
    model = Decoder(config(dim=64, context=512, position="learned"))
    assert model.positions[0].table.weight.std().item() == pytest.approx((2 / (5 * 64)) ** 0.5 / 2, rel=0.02)


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Decoder(config(), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_building_leaves_the_generators_of_the_accelerator_alone(monkeypatch):
    """`torch.manual_seed` reseeds every device, and a fork without devices does not undo that."""
    reseeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: reseeded.append(seed))
    Decoder(config(), seed=3)
    assert not reseeded


@pytest.mark.gpu
def test_building_leaves_the_cuda_generator_alone():
    torch.cuda.manual_seed(1)
    before = torch.cuda.get_rng_state()
    Decoder(config(), seed=3)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_tied_embeddings_are_one_tensor():
    tied, untied = build(tie_embeddings=True), build(tie_embeddings=False)
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    with torch.no_grad():
        tied.embedding.weight.zero_()
    assert not tied(random_tokens(1, 3)).any()


@pytest.mark.parametrize("row", models(), ids=labels)
def test_a_build_on_the_meta_device_has_the_same_parameters(row):
    with torch.device("meta"):
        meta = Decoder(config(**row))
    assert all(parameter.is_meta for parameter in meta.parameters())
    shapes = {name: p.shape for name, p in Decoder(config(**row)).named_parameters()}
    assert {name: p.shape for name, p in meta.named_parameters()} == shapes


# --- round trip ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a text"], 260)


@pytest.mark.parametrize("row", models(), ids=labels)
def test_saved_and_loaded_it_has_the_same_logits(row, tokenizer, tmp_path):
    model, tokens, documents = build(**row).eval(), random_tokens(2, 12), documents_of([5, 7], batch=2)
    save_model(tmp_path / "model", model, tokenizer)
    again = load_model(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again(tokens, documents=documents), model(tokens, documents=documents))


@pytest.mark.parametrize("row", models(), ids=labels)
def test_a_config_is_plain_data(row):
    plain = config(**row).to_dict()
    assert DecoderConfig.from_dict(json.loads(json.dumps(plain))) == config(**row)


# --- training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", models(), ids=labels)
def test_every_parameter_is_trained(row):
    model, tokens = build(**row, bias=True, tie_embeddings=False), random_tokens(2, 32)
    next_token_loss(model.hidden(tokens), model.head.weight, tokens.roll(-1, 1)).backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("attention.key.bias"):  # without rotation it adds the same to all scores of a query
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("row", models(), ids=labels)
def test_logits_are_the_head_of_the_hidden_state(row):
    model, tokens = build(**row), random_tokens(2, 9)
    assert torch.equal(model(tokens), model.hidden(tokens) @ model.head.weight.t())


def test_rows_of_a_batch_do_not_meet():
    model, tokens = build(), random_tokens(3, 9)
    logits, x = embedded(model, tokens)
    gradient = torch.autograd.grad(logits[1].square().sum(), x)[0]
    assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()


@pytest.mark.parametrize("shape", [(3,), (2, 0), (1, 2, 3)], ids=str)
def test_tokens_are_a_batch_of_rows(shape):
    with pytest.raises(AblateError, match="at least one token"):
        build()(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("node", singles("norm"), ids=label)
def test_the_last_word_of_a_pre_norm_stack_is_a_norm_and_of_a_post_norm_stack_is_not(node):
    kind = AXES["norm"].component(node["name"])
    assert isinstance(build(norm=node, placement="pre").final_norm, kind)
    assert not list(build(norm=node, placement="post").final_norm.parameters())
