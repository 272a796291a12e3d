"""Laws 9 and 12, and parity with Hugging Face: what a decoder starts from, keeps and equals."""

import io
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
    small,
    stirred,
)

from ablate.errors import AblateError
from ablate.model.config import AXES, DecoderConfig
from ablate.model.decoder import Decoder
from ablate.model.loss import next_token_loss


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


@pytest.mark.parametrize("row", models(), ids=labels)
def test_saved_and_loaded_it_has_the_same_logits(row):
    model, tokens, documents = build(**row), random_tokens(2, 12), documents_of([5, 7], batch=2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = Decoder(DecoderConfig.from_dict(model.config.to_dict()), seed=99)
    again.load_state_dict(torch.load(file, weights_only=True))
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
        if not name.endswith("attention.key.bias"):  # adds the same to all scores of a query, where nothing rotates
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


# --- parity with transformers --------------------------------------------------------------------------


def load(model: Decoder, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.pop(name))
    assert not weights


@pytest.mark.parametrize("tanh", [True, False])
@torch.no_grad()
def test_gpt2_is_transformers_gpt2(tanh):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=97, n_positions=48, n_embd=32, n_layer=3, n_head=4,
            activation_function="gelu_new" if tanh else "gelu",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, layer_norm_epsilon=1e-5,
        )
    ).eval()  # fmt: skip
    stirred(theirs)
    ours = Decoder(
        config(
            dim=32, depth=3, heads=4, context=48, vocab_size=97, bias=True, tie_embeddings=True,
            norm={"name": "layernorm", "eps": 1e-5}, attention="mha", position="learned",
            ffn={"name": "gelu", "tanh": tanh},
        )
    )  # fmt: skip
    hf = theirs.transformer
    weights = {
        "embedding.weight": hf.wte.weight,
        "positions.0.table.weight": hf.wpe.weight,
        "final_norm.weight": hf.ln_f.weight,
        "final_norm.bias": hf.ln_f.bias,
    }
    for n, block in enumerate(hf.h):
        linears = {
            "attention.out": (block.attn.c_proj.weight.t(), block.attn.c_proj.bias),
            "ffn.up": (block.mlp.c_fc.weight.t(), block.mlp.c_fc.bias),
            "ffn.out": (block.mlp.c_proj.weight.t(), block.mlp.c_proj.bias),
            "attention_norm": (block.ln_1.weight, block.ln_1.bias),
            "ffn_norm": (block.ln_2.weight, block.ln_2.bias),
        }
        parts = zip(block.attn.c_attn.weight.t().chunk(3), block.attn.c_attn.bias.chunk(3), strict=True)
        linears |= dict(zip(("attention.query", "attention.key", "attention.value"), parts, strict=True))
        for name, (weight, bias) in linears.items():
            weights |= {f"blocks.{n}.{name}.weight": weight, f"blocks.{n}.{name}.bias": bias}
    load(ours, weights)
    tokens = torch.randint(97, (2, 48))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_llama_is_transformers_llama():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=48, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
    ).eval()  # fmt: skip
    stirred(theirs)
    ours = Decoder(
        config(
            dim=32, depth=3, heads=4, context=48, vocab_size=97, bias=False, tie_embeddings=False,
            norm={"name": "rmsnorm", "eps": 1e-5}, attention=small("attention", "gqa", kv_heads=2),
            position={"name": "rope", "theta": 500.0}, ffn={"name": "swiglu", "hidden": 56},
        )
    )  # fmt: skip

    def interleaved(weight):
        """Rows of each head from halves (0, d/2), ... to neighbours (0, 1), ..."""
        return weight.unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(0, 2)

    weights = {
        "embedding.weight": theirs.model.embed_tokens.weight,
        "final_norm.weight": theirs.model.norm.weight,
        "head.weight": theirs.lm_head.weight,
    }
    for n, block in enumerate(theirs.model.layers):
        parts = {
            "attention.query": interleaved(block.self_attn.q_proj.weight),
            "attention.key": interleaved(block.self_attn.k_proj.weight),
            "attention.value": block.self_attn.v_proj.weight,
            "attention.out": block.self_attn.o_proj.weight,
            "ffn.gate": block.mlp.gate_proj.weight,
            "ffn.up": block.mlp.up_proj.weight,
            "ffn.out": block.mlp.down_proj.weight,
            "attention_norm": block.input_layernorm.weight,
            "ffn_norm": block.post_attention_layernorm.weight,
        }
        weights |= {f"blocks.{n}.{name}.weight": weight for name, weight in parts.items()}
    load(ours, weights)
    tokens = torch.randint(97, (2, 48))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)
    positions = torch.randint(1000, (2, 48)).sort(dim=1).values
    expected = theirs(tokens, position_ids=positions, attention_mask=torch.ones_like(tokens)).logits
    torch.testing.assert_close(ours(tokens, positions=positions), expected, rtol=0, atol=1e-4)
