"""Law 8: identities between components."""

import pytest
import torch
from torch import nn
from zoo import (
    build,
    documents_of,
    given,
    gradients,
    label,
    labels,
    models,
    nodes,
    random_tokens,
    settled,
    singles,
    small,
    twin,
)

from ablate.model.axes.attention import ATTENTIONS
from ablate.model.axes.ffn import FFNS
from ablate.model.axes.norm import NORMS
from ablate.model.axes.placement import PLACEMENTS
from ablate.model.axes.position import POSITIONS
from ablate.model.config import AXES

SHARING = [name for name in ATTENTIONS.names() if name != "mha"]


# --- attention -----------------------------------------------------------------------------------------


def test_gqa_with_as_many_kv_heads_as_heads_is_mha():
    gqa = build(attention=small("attention", "gqa", kv_heads=4), bias=True)
    mha = twin(gqa, attention={"name": "mha"})
    tokens, documents = random_tokens(2, 12), documents_of([5, 7], batch=2)
    assert torch.equal(gqa(tokens, documents=documents), mha(tokens, documents=documents))
    assert gqa.new_cache(1, 8).nbytes == mha.new_cache(1, 8).nbytes


@pytest.mark.parametrize("attention", [small("attention", name) for name in SHARING], ids=label)
def test_shared_heads_are_mha_with_repeated_keys_and_values(attention):
    shared = build(attention=attention, bias=True)
    weights = dict(shared.state_dict())
    for name, value in weights.items():
        if ".key." in name or ".value." in name:
            heads = value.unflatten(0, (-1, 8))
            weights[name] = heads.repeat_interleave(4 // len(heads), dim=0).flatten(0, 1)
    mha = build(attention="mha", bias=True)
    mha.load_state_dict(weights)
    tokens = random_tokens(2, 12)
    torch.testing.assert_close(shared(tokens), mha(tokens), rtol=0, atol=1e-5)
    assert shared.new_cache(1, 8).nbytes < mha.new_cache(1, 8).nbytes


def test_one_layer_without_positions_ignores_the_order_of_earlier_tokens():
    tokens = random_tokens(1, 12)
    shuffled = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], dim=1)
    model = build(position="none", depth=1)
    torch.testing.assert_close(model(tokens)[:, -1], model(shuffled)[:, -1], rtol=0, atol=1e-5)
    deeper = build(position="none", depth=2)
    assert not torch.allclose(deeper(tokens)[:, -1], deeper(shuffled)[:, -1], rtol=0, atol=1e-3)


# --- positions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
@pytest.mark.parametrize("name", [name for name in POSITIONS.names() if not POSITIONS.component(name).absolute])
def test_relative_positions_do_not_notice_a_shift(name, pattern):
    model, tokens = build(position=name, pattern=pattern), random_tokens(1, 16)
    positions = torch.arange(16).unsqueeze(0)
    torch.testing.assert_close(model(tokens, positions=positions + 7), model(tokens), rtol=0, atol=1e-5)
    torch.testing.assert_close(model(tokens, positions=positions + 500), model(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in POSITIONS.names() if POSITIONS.component(name).absolute])
def test_absolute_positions_notice_a_shift(name):
    model, tokens = build(position=name), random_tokens(1, 16)
    shifted = model(tokens, positions=torch.arange(16).unsqueeze(0) + 7)
    assert not torch.allclose(shifted, model(tokens), rtol=0, atol=1e-2)


def rotated(x, positions, theta=10000.0):
    rope = POSITIONS.build({"name": "rope", "theta": theta}, given(head_dim=x.shape[-1]))
    return rope.rotate(x, rope.rotation(positions))


def test_rope_turns_each_pair_of_channels_by_its_own_angle():
    x, positions = torch.randn(1, 5, 1, 6), torch.tensor([[0, 1, 2, 7, 31]])
    found = rotated(x, positions, theta=100.0)
    for t, position in enumerate(positions[0].tolist()):
        for pair in range(3):
            angle = torch.tensor(position * 100.0 ** (-2 * pair / 6))
            a, b = x[0, t, 0, 2 * pair], x[0, t, 0, 2 * pair + 1]
            expected = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()])
            torch.testing.assert_close(found[0, t, 0, 2 * pair : 2 * pair + 2], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fraction, width", [(0.25, 2), (0.5, 4), (1.0, 8)])
def test_partial_rope_turns_the_first_channels_and_leaves_the_others(fraction, width):
    x, positions = torch.randn(2, 16, 4, 8), torch.randint(0, 2000, (2, 16))
    rope = POSITIONS.build({"name": "rope", "fraction": fraction}, given())
    found = rope.rotate(x, rope.rotation(positions))
    torch.testing.assert_close(found[..., :width], rotated(x[..., :width], positions), rtol=0, atol=1e-5)
    assert torch.equal(found[..., width:], x[..., width:])


def test_linear_interpolation_divides_positions():
    x, positions = torch.randn(2, 16, 4, 8), torch.randint(0, 500, (2, 16))
    linear = POSITIONS.build({"name": "rope_linear", "factor": 4}, given())
    found = linear.rotate(x, linear.rotation(4 * positions))
    torch.testing.assert_close(found, rotated(x, positions), rtol=0, atol=1e-4)


def test_llama3_scaling_slows_slow_pairs_only():
    """Turns in the original context: more than 4 stay, fewer than 1 are slowed 8 times, those between blended."""
    scaled = POSITIONS.build({"name": "rope_llama3"}, given(head_dim=128)).frequencies(torch.device("cpu"))
    plain = POSITIONS.build({"name": "rope", "theta": 5e5}, given(head_dim=128)).frequencies(torch.device("cpu"))
    turns, ratio = 8192 * plain / (2 * torch.pi), scaled / plain
    assert ratio[turns >= 4].eq(1).all() and (turns >= 4).any()
    torch.testing.assert_close(ratio[turns <= 1], torch.full_like(ratio[turns <= 1], 1 / 8))
    between = (turns > 1) & (turns < 4)
    assert between.any() and ((ratio[between] > 1 / 8) & (ratio[between] < 1)).all()
    assert (ratio.diff() <= 0).all()


@pytest.mark.parametrize(
    "heads, slopes",
    [
        (1, [2**-8.0]),
        (4, [2**-2.0, 2**-4.0, 2**-6.0, 2**-8.0]),
        (8, [2.0**-n for n in range(1, 9)]),
        (6, [2**-2.0, 2**-4.0, 2**-6.0, 2**-8.0, 2**-1.0, 2**-3.0]),
        (12, [*(2.0**-n for n in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
    ],
)
def test_alibi_has_the_slopes_of_the_paper(heads, slopes):
    alibi = POSITIONS.build({"name": "alibi"}, given(heads=heads))
    found = alibi.bias(torch.arange(heads), torch.tensor(7), torch.tensor(6))
    torch.testing.assert_close(found, -torch.tensor(slopes), rtol=1e-6, atol=0)
    assert torch.equal(alibi.bias(torch.arange(heads), torch.tensor(7), torch.tensor(4)), 3 * found)


def test_alibi_adds_its_bias_to_the_scores():
    """One head, one layer, queries that are 0: the weights are the softmax of the bias alone."""
    model = build(position="alibi", attention="mha", depth=1)
    attention = model.blocks[0].attention
    with torch.no_grad():
        attention.query.weight.zero_()
    seen = []
    attention.value.register_forward_hook(lambda _, args, out: seen.append(out.unflatten(-1, (4, 8))))
    attention.out.register_forward_pre_hook(lambda _, args: seen.append(args[0].unflatten(-1, (4, 8))))
    model(random_tokens(1, 10))
    values, attended = seen
    for head in range(4):
        weights = torch.tensor([-(4.0 ** -(head + 1)) * (9 - key) for key in range(10)]).softmax(0)
        torch.testing.assert_close(attended[0, 9, head], weights @ values[0, :, head], rtol=0, atol=1e-5)


def test_the_compiled_form_of_rope_is_the_complex_form(monkeypatch):
    x, positions = torch.randn(2, 16, 4, 8), torch.randint(0, 2000, (2, 16))
    eager = rotated(x, positions)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotated(x, positions), eager, rtol=0, atol=1e-6)


def test_rope_is_llamas_with_the_channels_in_another_order():
    """Ours turns (0, 1), (2, 3), ...; theirs turns (0, d/2), (1, d/2 + 1), ..."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    width, positions = 8, torch.tensor([[0, 1, 2, 3, 30, 200], [4, 4, 0, 9, 8, 7]])
    settings = llama.LlamaConfig(
        hidden_size=32, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    )
    q, k = torch.randn(2, 6, 4, width), torch.randn(2, 6, 2, width)
    halves = torch.arange(width).view(-1, 2).t().flatten()  # 0 2 4 6 1 3 5 7
    cos, sin = llama.LlamaRotaryEmbedding(settings)(q, positions)
    theirs = llama.apply_rotary_pos_emb(q[..., halves], k[..., halves], cos, sin, unsqueeze_dim=2)
    for ours, expected in zip((q, k), theirs, strict=True):
        torch.testing.assert_close(rotated(ours, positions, 500.0)[..., halves], expected, rtol=0, atol=1e-5)


def test_sinusoids_are_those_of_the_paper():
    """PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = cos(...), on embeddings times sqrt(D)."""
    sinusoidal = POSITIONS.build({"name": "sinusoidal"}, given(dim=6))
    x, positions = torch.randn(1, 3, 6), torch.tensor([[0, 5, 60]])
    found = sinusoidal.embed(x, positions) - x * 6**0.5
    for t, position in enumerate(positions[0].tolist()):
        for i in range(3):
            angle = torch.tensor(position / 10000 ** (2 * i / 6))
            expected = torch.stack([angle.sin(), angle.cos()])
            torch.testing.assert_close(found[0, t, 2 * i : 2 * i + 2], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", POSITIONS.names())
def test_absolute_positions_are_added_once_though_head_widths_differ_between_layers(name):
    heads = [small("attention", "mha", head_dim=width) for width in (8, 16)]
    model = build(position=name, attention={"cycle": heads})
    assert len(model.positions) == (1 if POSITIONS.component(name).absolute else 2)


# --- norms ---------------------------------------------------------------------------------------------


def normed(name, x, dim=24, seed=None, **options):
    norm = NORMS.build({"name": name, **options}, given(dim=dim))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.copy_(torch.randn(dim, generator=generator))
    return norm(x), norm


def test_rmsnorm_of_x_less_its_mean_is_layernorm():
    x = torch.randn(3, 5, 24) * 4 + 2
    rms, _ = normed("rmsnorm", x - x.mean(-1, keepdim=True), eps=1e-5)
    layer, _ = normed("layernorm", x, eps=1e-5)
    torch.testing.assert_close(rms, layer, rtol=0, atol=2e-6)


def same_as(ours, theirs, x, dtype_tolerance):
    """Values and gradients of two modules with the same parameters."""
    theirs.load_state_dict(ours.state_dict())
    direction = torch.randn_like(x)
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        grads = torch.autograd.grad((y * direction).sum(), [leaf, *module.parameters()])
        results.append((y.detach(), *grads))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **dtype_tolerance)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rmsnorm_is_torchs_forward_and_backward(eps, scale):
    x = torch.randn(3, 5, 24) * scale
    _, ours = normed("rmsnorm", x, seed=0, eps=eps)
    same_as(ours, nn.RMSNorm(24, eps=eps), x, {"rtol": 2e-5, "atol": 2e-5})


@pytest.mark.parametrize("bias", [True, False])
def test_layernorm_is_torchs(bias):
    x = torch.randn(3, 5, 24)
    _, ours = normed("layernorm", x, seed=0, eps=1e-3, bias=bias)
    same_as(ours, nn.LayerNorm(24, eps=1e-3, bias=bias), x, {"rtol": 0, "atol": 0})


def test_the_compiled_form_of_rmsnorm_is_the_eager_form(monkeypatch):
    x = torch.randn(3, 5, 24)
    eager, norm = normed("rmsnorm", x, seed=0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(norm(x), eager, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", NORMS.names())
def test_gradients_of_norms_are_right_in_float64(name):
    norm = NORMS.build({"name": name}, given(dim=6)).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(6))
    names = [n for n, _ in norm.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *norm.parameters()))


@pytest.mark.parametrize("name", NORMS.names())
def test_norms_under_autocast_are_close_to_fp32(name):
    x = torch.randn(4, 8, 24) * 3
    expected, norm = normed(name, x, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(x)
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=1e-2)


def test_rmsnorm_under_autocast_leaves_in_bf16_and_its_gradient_comes_back_in_fp32():
    x = torch.randn(4, 8, 24, requires_grad=True)
    norm = NORMS.build({"name": "rmsnorm"}, given(dim=24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    direction = torch.randn(4, 8, 24)
    (y.float() * direction).sum().backward()
    found = x.grad, norm.weight.grad
    assert [g.dtype for g in found] == [torch.float32] * 2
    expected = torch.autograd.grad((norm(x) * direction).sum(), [x, norm.weight])
    for gradient, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=2e-2, atol=3e-2)


@pytest.mark.parametrize("name", NORMS.names())
def test_second_derivatives_of_norms_are_right_or_refused(name):
    """A Hessian-vector product through a norm is never silently wrong."""
    x = torch.randn(6, requires_grad=True)
    _, norm = normed(name, x.detach(), dim=6, seed=0)
    direction, probe = torch.randn(6), torch.randn(6)

    def gradient(x, create_graph=False):
        return torch.autograd.grad((norm(x.view(1, 1, 6)) * direction).sum(), x, create_graph=create_graph)[0]

    first = gradient(x, create_graph=True)
    try:
        (found,) = torch.autograd.grad((first * probe).sum(), x, allow_unused=True)
    except RuntimeError:
        return
    step = 1e-3
    numeric = (gradient(x + step * probe) - gradient(x - step * probe)) / (2 * step)
    torch.testing.assert_close(torch.zeros(6) if found is None else found, numeric, rtol=1e-2, atol=1e-2)


# --- placements and activations, as their papers write them ----------------------------------------------

PLACED = {
    "pre": lambda x, f, g, n: (h := x + f(n["attention_norm"](x))) + g(n["ffn_norm"](h)),
    "post": lambda x, f, g, n: n["ffn_norm"]((h := n["attention_norm"](x + f(x))) + g(h)),
    "sandwich": lambda x, f, g, n: (
        (h := x + n["attention_out_norm"](f(n["attention_norm"](x)))) + n["ffn_out_norm"](g(n["ffn_norm"](h)))
    ),
    "parallel": lambda x, f, g, n: x + f(n["norm"](x)) + g(n["norm"](x)),
    "reordered": lambda x, f, g, n: (h := x + n["attention_norm"](f(x))) + n["ffn_norm"](g(h)),
}
ACTIVATED = {
    "relu": lambda up: up.clamp(min=0),
    "relu2": lambda up: up.clamp(min=0) ** 2,
    "gelu": lambda up: up * (1 + torch.erf(up / 2**0.5)) / 2,
    "swiglu": lambda gate, up: gate / (1 + torch.exp(-gate)) * up,
    "geglu": lambda gate, up: gate * (1 + torch.erf(gate / 2**0.5)) / 2 * up,
}


def placed(name, scale=1.0):
    """A block whose attention is a function of one position: its output, and that of its definition."""
    model = build(placement=small("placement", name, residual_scale=scale), norm="layernorm")
    block, mix, x = model.blocks[0], torch.randn(32, 32), torch.randn(2, 5, 32)
    block.attention.forward = lambda x, context: (x @ mix).sin()
    norms = {name: module for name, module in block.named_children() if "norm" in name}
    attention, ffn = (lambda x: scale * (x @ mix).sin()), (lambda x: scale * block.ffn(x, None))
    return block(x, None), PLACED[name](x, attention, ffn, norms)


@pytest.mark.parametrize("name", PLACEMENTS.names())
def test_a_placement_is_its_definition(name):
    found, expected = placed(name)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["pre", "post", "parallel"])
def test_residual_scale_multiplies_what_a_sublayer_adds(name):
    found, expected = placed(name, scale=0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, norms", [("sandwich", ["attention_out_norm", "ffn_out_norm"]), ("reordered", [])])
def test_residual_scale_multiplies_what_a_norm_after_the_sublayer_gives(name, norms):
    block = build(placement=small("placement", name, residual_scale=0.3), norm="layernorm").blocks[0]
    plain = build(placement=name, norm="layernorm").blocks[0]
    plain.load_state_dict(block.state_dict())
    with torch.no_grad():  # a gain and a bias of 0.3 do the same
        for norm in norms or ["attention_norm", "ffn_norm"]:
            for parameter in getattr(plain, norm).parameters():
                parameter.mul_(0.3)
    x = torch.randn(2, 5, 32)
    for each in (block, plain):
        each.attention.forward = lambda x, context: x.sin()
    torch.testing.assert_close(block(x, None), plain(x, None), rtol=0, atol=1e-6)


def test_deepnorm_is_post_with_a_residual_scale():
    """norm(alpha x + f(x)) (Wang et al. 2022) = norm(x + f(x) / alpha), epsilon aside."""
    alpha = 2.5
    block = build(placement=small("placement", "post", residual_scale=1 / alpha), norm="layernorm").blocks[0]
    block.attention.forward = lambda x, context: x.sin()
    x = torch.randn(2, 5, 32)
    h = block.attention_norm(alpha * x + x.sin())
    expected = block.ffn_norm(alpha * h + block.ffn(h, None))
    torch.testing.assert_close(block(x, None), expected, rtol=0, atol=1e-4)


# --- options of attention --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bias, model_bias, expected",
    [
        (None, False, set()),
        (None, True, {"query", "key", "value", "out"}),
        (True, False, {"query", "key", "value", "out"}),
        (False, True, set()),
        (["query", "key", "value"], False, {"query", "key", "value"}),
        ([], True, set()),
    ],
)
@pytest.mark.parametrize("name", ATTENTIONS.names())
def test_attention_has_a_bias_where_it_is_asked_for(name, bias, model_bias, expected):
    attention = build(attention=small("attention", name, bias=bias), bias=model_bias).blocks[0].attention
    assert {part for part in ("query", "key", "value", "out") if getattr(attention, part).bias is not None} == expected


def test_a_soft_cap_bounds_the_scores_and_a_wide_one_changes_nothing():
    tokens = random_tokens(2, 12)
    plain = build(attention="mha")
    wide = twin(plain, attention=small("attention", "mha", softcap=1e4))
    torch.testing.assert_close(wide(tokens), plain(tokens), rtol=0, atol=1e-4)
    uniform = twin(plain, attention=small("attention", "mha", softcap=1e-6), pattern={"name": "full"})
    seen = []
    uniform.blocks[0].attention.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    uniform.blocks[0].attention.value.register_forward_hook(lambda _, args, out: seen.append(out))
    uniform(tokens)
    values, attended = seen
    mean = values.cumsum(1) / torch.arange(1, 13).view(1, -1, 1)  # all scores nearly 0: the mean of the values
    torch.testing.assert_close(attended, mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind, width", [("head", 8), ("width", 32)])
def test_qk_norm_is_rmsnorm_of_queries_and_keys_alone(kind, width):
    model = build(attention=small("attention", "mha", qk_norm=kind), position="none")
    attention, x = model.blocks[0].attention, torch.randn(2, 5, 32)
    seen = []

    class Context:
        def attend(self, query, key, value):
            seen.extend((query, key, value))
            return query

    attention(x, Context())
    for name, norm, found in zip(("query", "key"), (attention.query_norm, attention.key_norm), seen, strict=False):
        flat = getattr(attention, name)(x)
        grouped = flat.unflatten(-1, (-1, width))
        expected = grouped / (grouped.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        torch.testing.assert_close(found.flatten(-2), expected.flatten(-2), rtol=0, atol=1e-5)
    assert torch.equal(seen[2].flatten(-2), attention.value(x))


@pytest.mark.parametrize("name", [name for name in FFNS.names() if name in ACTIVATED])
def test_a_feed_forward_is_its_definition(name):
    ffn, x = build(ffn=name, bias=True).blocks[0].ffn, torch.randn(2, 5, 32)
    inner = [getattr(ffn, part)(x) for part in ("gate", "up") if hasattr(ffn, part)]
    torch.testing.assert_close(ffn(x, None), ffn.out(ACTIVATED[name](*inner)), rtol=0, atol=1e-5)


# --- precision -------------------------------------------------------------------------------------------

PLAIN = {"norm": "layernorm", "position": "learned"}  # so that only the part under test can fail
PARTS = [{axis: node} for axis in AXES for node in singles(axis)]


def part_label(part):
    ((axis, node),) = part.items()
    return f"{axis}-{label(node)}"


@pytest.mark.parametrize("part", PARTS, ids=part_label)
def test_a_model_in_float64_has_the_logits_of_fp32(part):
    model = build(**{**PLAIN, **part})
    tokens, documents = random_tokens(2, 16), documents_of([5, 11], batch=2)
    expected = model(tokens, documents=documents)
    found = model.double()(tokens, documents=documents)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("part", PARTS, ids=part_label)
@torch.no_grad()
def test_a_model_in_bf16_has_nearly_the_logits_of_fp32(part):
    model, tokens = build(**{**PLAIN, **settled(part)}), random_tokens(2, 16)
    expected = model(tokens)
    model = model.to(torch.bfloat16)
    found = model(tokens)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()
    cache = model.new_cache(2, 16)
    cached = torch.cat([model(t, cache=cache) for t in tokens.split([7, 1, 8], dim=1)], dim=1)
    assert (cached.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("row", models(), ids=labels)
def test_a_model_under_autocast_has_nearly_the_logits_and_gradients_of_fp32(row):
    model, tokens, documents = build(**settled(row)), random_tokens(2, 16), documents_of([5, 11], batch=2)
    expected = model(tokens, documents=documents), gradients(model, tokens, documents=documents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(tokens, documents=documents)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(9))
    (found.float() * direction).sum().backward()
    assert (found.float() - expected[0]).norm() < 0.05 * expected[0].norm()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        off = (parameter.grad - expected[1][name]).norm() / expected[1][name].norm()
        assert off < 0.2, f"{name}: {off}"


@pytest.mark.parametrize("name", POSITIONS.names())
def test_positions_far_out_stay_exact_in_a_bf16_model(name):
    """Angles in bf16 are wrong by whole turns from position 256 on: frequencies stay in fp32."""
    positions = torch.tensor([[0, 3, 255, 1021, 4093]])
    x, q = torch.randn(1, 5, 32), torch.randn(1, 5, 4, 8)
    exact = POSITIONS.build(small("position", name), given(context=5000))
    model = nn.ModuleList([POSITIONS.build(small("position", name), given(context=5000))])
    model[0].load_state_dict(exact.state_dict())
    low = model.to(torch.bfloat16)[0]
    near = {"rtol": 0, "atol": 0.1}
    torch.testing.assert_close(low.embed(x.bfloat16(), positions).float(), exact.embed(x, positions), **near)
    found = low.rotate(q.bfloat16(), low.rotation(positions)).float()
    torch.testing.assert_close(found, exact.rotate(q, exact.rotation(positions)), **near)
