"""The mixture of experts against a loop over tokens, other people's code and its definitions; law 8 for experts."""

import math

import pytest
import torch
from zoo import build, config, documents_of, given, random_tokens, small

from ablate.accounting import budget
from ablate.errors import AblateError
from ablate.model.axes.ffn import FFNS, Dense, FeedForward
from ablate.model.context import ForwardContext, Record
from ablate.model.decoder import Decoder
from ablate.model.given import Given
from ablate.model.kernels.grouped import _grouped

DIM = 16
DENSE = [name for name in FFNS.names() if issubclass(FFNS.component(name), Dense)]


def mixture(bias=True, seed=1, **options):
    """A mixture with its parameters, and its selection bias if it has one, at random."""
    moe = FFNS.build({"name": "moe", "experts": 4, "hidden": 24, **options}, given(dim=DIM, bias=bias))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in sorted(moe.state_dict(keep_vars=True).items()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return moe


def tokens_of(batch=2, length=7, seed=0):
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed))


def context(real=None):
    return ForwardContext(3, None, None, None, None, None, real=real, record=Record())


def report(moe, x, real=None):
    """Losses and statistics of one pass."""
    given = context(real)
    moe(x, given)
    return given.record.losses, {name: layers[3] for name, layers in given.record.statistics.items()}


# --- the definition, token by token ---------------------------------------------------------------------


def expert_weights(moe, number):
    """By the names that they have in a dense FFN."""
    count = moe.router.out_features
    shapes = {name: p.shape[1:] if p.ndim == 3 else (-1,) for name, p in moe.experts.named_parameters()}
    return {name: p.view(count, *shapes[name])[number] for name, p in moe.experts.named_parameters()}


def dense_like(moe):
    weights = moe.experts.out.weight
    bias = moe.experts.out.bias is not None
    dense = type(moe.experts)(given(dim=DIM, bias=bias), hidden=weights.shape[2])
    if hasattr(dense, "approximate"):
        dense.approximate = moe.experts.approximate
    return dense


def expert_output(moe, number, x):
    """What expert `number` makes of one token: what the dense FFN of that kind makes of it with the same weights."""
    return torch.func.functional_call(dense_like(moe), expert_weights(moe, number), (x.view(1, -1), None))[0]


def choices(moe, x):
    """For each token, its experts in falling order of preference, and their gates."""
    found = []
    for token in x.flatten(0, 1):
        logits = moe.router.weight @ token
        probabilities = logits.exp() / logits.exp().sum()
        preference = probabilities + moe.selection_bias if moe.bias_update else probabilities
        experts = sorted(range(len(logits)), key=lambda e: -preference[e].item())[: moe.top_k]
        gates = [probabilities[e] for e in experts]
        if moe.softmax == "after":
            gates = [gate / sum(gates) for gate in gates]
        found.append((experts, gates))
    return found


def dropped(moe, chosen, real):
    """(token, choice) pairs that found their expert full."""
    if moe.capacity_factor is None or not moe.training:
        return set()
    capacity = math.ceil(moe.capacity_factor * sum(real) * moe.top_k / moe.router.out_features)
    room, lost = [capacity] * moe.router.out_features, set()
    for choice in range(moe.top_k):
        for token, (experts, _) in enumerate(chosen):
            if real[token] and not room[experts[choice]]:
                lost.add((token, choice))
            elif real[token]:
                room[experts[choice]] -= 1
    return lost


def by_hand(moe, x, real=None):
    chosen = choices(moe, x)
    lost = dropped(moe, chosen, [True] * len(chosen) if real is None else real.flatten().tolist())
    rows = []
    for token, (experts, gates) in enumerate(chosen):
        row = x.flatten(0, 1)[token]
        y = torch.zeros(DIM) if moe.shared is None else moe.shared(row.view(1, -1), None)[0]
        for choice, (expert, gate) in enumerate(zip(experts, gates, strict=True)):
            if (token, choice) not in lost:
                y = y + gate * expert_output(moe, expert, row)
        rows.append(y)
    return torch.stack(rows).view_as(x)


VARIANTS = {
    "default": {},
    "before": {"softmax": "before"},
    "one of four, before": {"softmax": "before", "top_k": 1},
    "all": {"top_k": 4},
    "seven experts": {"experts": 7, "top_k": 3},
    "shared": {"shared_experts": 2},
    "selection bias": {"bias_update": 0.1},
    "selection bias, before": {"bias_update": 0.1, "softmax": "before"},
    "capacity": {"capacity_factor": 0.75},
    "little capacity": {"capacity_factor": 0.1, "softmax": "before"},
    "odd width": {"hidden": 7},
    "tanh": {"expert": {"name": "gelu", "tanh": True}},
    "without bias": {"bias": False},
    **{name: {"expert": name} for name in DENSE},
}


@pytest.fixture(params=["one by one", "grouped"])
def path(request, monkeypatch):
    """The two ways through the experts: the second is the one of a GPU and of a compiled model."""
    if request.param == "grouped":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.parametrize("shape", [(2, 7), (1, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_mixture_is_its_definition_forward_and_backward(variant, shape, path):
    moe, direction, results = mixture(**VARIANTS[variant]), torch.randn(*shape, DIM), []
    for compute in (lambda x: moe(x, None), lambda x: by_hand(moe, x)):
        x = tokens_of(*shape).requires_grad_()
        y, leaves = compute(x), [x, *moe.parameters()]
        grads = torch.autograd.grad((y * direction).sum(), leaves, allow_unused=True, materialize_grads=True)
        results.append([y, *grads])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() <= 2e-6 * max(1.0, expected.abs().max())


def test_the_selection_bias_changes_the_choice_and_not_the_gates():
    moe, x = mixture(bias_update=0.1, softmax="before"), tokens_of()
    _, statistics = report(moe, x)
    with torch.no_grad():
        moe.selection_bias.copy_(torch.tensor([10.0, 0.0, 0.0, 5.0]))
    _, biased = report(moe, x)
    assert biased["router_experts"].unique(dim=1).tolist() == [[[0, 3]]] * 2
    assert not torch.equal(statistics["router_experts"], biased["router_experts"])
    torch.testing.assert_close(moe(x, None), by_hand(moe, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_grouped_product_and_its_gradients_are_registered_as_torch_wants_them(dtype):
    x = torch.randn(9, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 5, 8, dtype=dtype, requires_grad=True)
    ends = torch.tensor([3, 3, 8, 9], dtype=torch.int32)  # the second group is empty
    torch.library.opcheck(_grouped, (x, weight, ends))
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda x, weight: _grouped(x, weight, ends), (x, weight))


# --- against transformers --------------------------------------------------------------------------------------


def theirs(kind, moe, top_k):
    """transformers' block with our weights."""
    module = pytest.importorskip(f"transformers.models.{kind.lower()}.modeling_{kind.lower()}")
    count = {"Mixtral": "num_local_experts", "Olmoe": "num_experts"}[kind]
    sizes = {"hidden_size": DIM, "intermediate_size": 24, count: moe.router.out_features, "num_experts_per_tok": top_k}
    settings = getattr(module, f"{kind}Config")(**sizes)
    block = getattr(module, f"{kind}SparseMoeBlock")(settings)
    ours = moe.experts
    block.load_state_dict(
        {
            "gate.weight": moe.router.weight,
            "experts.gate_up_proj": torch.cat([ours.gate.weight, ours.up.weight], dim=1),
            "experts.down_proj": ours.out.weight,
        }
    )
    return module, block


@pytest.mark.parametrize(("kind", "softmax"), [("Mixtral", "after"), ("Olmoe", "before")])
@pytest.mark.parametrize("top_k", [2, 3])
def test_the_mixture_is_transformers_mixture(kind, softmax, top_k):
    moe, x = mixture(bias=False, softmax=softmax, top_k=top_k), tokens_of()
    _, block = theirs(kind, moe, top_k)
    torch.testing.assert_close(moe(x, None), block(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("top_k", [2, 3])
def test_the_balance_loss_is_transformers_over_top_k(top_k, padded):
    """Theirs counts f_i per token, so that they sum to top_k; ours per choice, so that they sum to 1."""
    moe, x = mixture(bias=False, top_k=top_k, balance_loss=0.3), tokens_of()
    real = torch.tensor([[True] * 7, [True] * 3 + [False] * 4]) if padded else None
    module, block = theirs("Mixtral", moe, top_k)
    logits = block.gate(x.flatten(0, 1))[0]
    expected = module.load_balancing_loss_func((logits,), moe.router.out_features, top_k, real)
    losses, _ = report(moe, x, real)
    torch.testing.assert_close(losses["balance_loss"], 0.3 * expected / top_k, rtol=1e-5, atol=1e-6)


# --- identities -------------------------------------------------------------------------------------------


def dense_of(moe, number):
    dense = dense_like(moe)
    dense.load_state_dict(expert_weights(moe, number))
    return dense


@pytest.mark.parametrize("softmax", ["before", "after"])
@pytest.mark.parametrize("expert", DENSE)
def test_one_expert_is_the_dense_ffn(expert, softmax):
    moe, x = mixture(expert=expert, experts=1, top_k=1, softmax=softmax), tokens_of()
    torch.testing.assert_close(moe(x, None), dense_of(moe, 0)(x, None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_k": 4, "softmax": "before"}], ids=str)
def test_equal_experts_whose_gates_sum_to_one_are_the_dense_ffn(options):
    moe, x = mixture(**options), tokens_of()
    with torch.no_grad():
        for parameter in moe.experts.parameters():
            rows = parameter.view(4, -1)
            rows.copy_(rows[:1].expand(4, -1).clone())
    torch.testing.assert_close(moe(x, None), dense_of(moe, 2)(x, None), rtol=1e-5, atol=2e-6)


def test_shared_experts_are_one_dense_ffn_added():
    moe, x = mixture(shared_experts=3), tokens_of()
    assert moe.shared.up.weight.shape == (3 * 24, DIM)
    both, shared = moe(x, None), moe.shared(x, None)
    moe.shared = None
    torch.testing.assert_close(both, moe(x, None) + shared, rtol=0, atol=1e-6)


def test_an_even_load_has_a_balance_loss_of_its_coefficient():
    moe = mixture(balance_loss=0.25, z_loss=2.0)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(4, DIM))
    x = torch.zeros(1, 4, DIM)
    for token in range(4):
        x[0, token, token], x[0, token, (token + 1) % 4] = 2.0, 1.0
    losses, statistics = report(moe, x)
    assert statistics["router_load"].tolist() == [2, 2, 2, 2]
    assert statistics["router_experts"].tolist() == [[[0, 1], [1, 2], [2, 3], [3, 0]]]
    assert losses["balance_loss"].item() == pytest.approx(0.25)
    assert losses["z_loss"].item() == pytest.approx(2.0 * math.log(math.e**2 + math.e + 2) ** 2)
    p = torch.tensor([2.0, 1.0, 0.0, 0.0]).softmax(0)
    assert statistics["router_entropy"].item() == pytest.approx(-(p * p.log()).sum().item())
    assert statistics["router_dropped"].item() == 0


def test_one_favourite_expert_has_a_balance_loss_of_up_to_the_number_of_experts():
    moe = mixture(balance_loss=0.25, softmax="before", top_k=1)
    with torch.no_grad():
        moe.router.weight.zero_()[2, 0] = 50.0
    losses, statistics = report(moe, torch.eye(DIM)[:1].expand(2, 3, -1))
    assert losses["balance_loss"].item() == pytest.approx(0.25 * 4)
    assert statistics["router_load"].tolist() == [0, 0, 6, 0]


# --- capacity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.9, 1.0, 1.25, 4.0])
@pytest.mark.parametrize("padded", [False, True])
def test_a_full_expert_takes_no_more_first_choices_first_then_in_order(factor, padded, path):
    moe, x = mixture(capacity_factor=factor, softmax="before"), tokens_of(3, 8)
    real = torch.rand(3, 8, generator=torch.Generator().manual_seed(4)) < 0.7 if padded else None
    kept = torch.ones(3, 8, dtype=torch.bool) if real is None else real
    _, statistics = report(moe, x, real)
    lost = dropped(moe, choices(moe, x), kept.flatten().tolist())
    assert statistics["router_dropped"].item() == pytest.approx(len(lost) / (2 * kept.sum().item()))
    torch.testing.assert_close(moe(x, context(real))[kept], by_hand(moe, x, real)[kept], rtol=1e-5, atol=1e-6)
    assert bool(lost) == (factor <= 1)


def test_first_choices_come_before_second_ones_of_earlier_tokens():
    moe = mixture(bias=False, experts=2, capacity_factor=0.5, balance_loss=0.0)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(2, DIM))
    x = torch.zeros(1, 2, DIM)
    x[0, 0, :2], x[0, 1, :2] = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0])
    assert dropped(moe, choices(moe, x), [True, True]) == {(0, 1), (1, 1)}
    gate = math.e / (1 + math.e)
    for token, expert in ((0, 0), (1, 1)):
        expected = gate * expert_output(moe, expert, x[0, token])
        torch.testing.assert_close(moe(x, None)[0, token], expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_dropped_in_eval_mode():
    moe, x = mixture(capacity_factor=0.1).eval(), tokens_of()
    free = mixture().eval()
    assert torch.equal(moe(x, None), free(x, None))
    assert report(moe, x)[1]["router_dropped"] == 0


# --- balancing by bias ------------------------------------------------------------------------------------


def test_a_step_moves_the_bias_by_the_sign_of_what_is_missing():
    moe, x = mixture(bias_update=0.25), tokens_of()
    before, load = moe.selection_bias.clone(), report(moe, x)[1]["router_load"].float()
    moe(tokens_of(seed=5), None)  # a second micro-batch
    load += report(mixture(bias_update=0.25), tokens_of(seed=5))[1]["router_load"]
    moe.after_step()
    torch.testing.assert_close(moe.selection_bias, before + 0.25 * (load.mean() - load).sign())
    after = moe.selection_bias.clone()
    moe.after_step()  # nothing was seen in between
    assert torch.equal(moe.selection_bias, after)


def test_the_bias_evens_out_the_load():
    moe, spread = mixture(experts=8, bias_update=0.01), []
    with torch.no_grad():
        moe.selection_bias.zero_()
    for step in range(60):
        load = report(moe, tokens_of(4, 64, seed=step) + 0.5)[1]["router_load"].float()
        spread.append((load.std() / load.mean()).item())
        moe.after_step()
    assert sum(spread[:3]) / 3 > 0.6
    assert sum(spread[-10:]) / 10 < 0.35


def test_only_training_with_gradients_counts_for_the_bias():
    moe, x = mixture(bias_update=0.25), tokens_of()
    before = moe.selection_bias.clone()
    with torch.no_grad():
        moe(x, None)
    moe.eval()(x, None)
    moe.train().after_step()
    assert torch.equal(moe.selection_bias, before)


def test_the_bias_is_kept_with_the_weights_and_the_load_is_not():
    names = mixture(bias_update=0.1).state_dict().keys() - mixture().state_dict().keys()
    assert names == {"selection_bias"}


def test_the_step_reaches_every_layer_of_a_model():
    model = build(ffn=small("ffn", "moe", bias_update=0.1))
    model(random_tokens(2, 12))
    model.after_step()
    assert all(block.ffn.selection_bias.any() for block in model.blocks)


# --- padding, statistics -------------------------------------------------------------------------------------


def test_padding_does_not_count():
    real = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    x, kinds = tokens_of(), {"bias_update": 0.1, "capacity_factor": 1.0}
    padded, short = mixture(**kinds), mixture(**kinds)
    found, expected = report(padded, x, real), report(short, x[real].unsqueeze(0))
    for one, other in zip(found, expected, strict=True):
        experts = one.pop("router_experts", None), other.pop("router_experts", None)
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7)
    assert torch.equal(experts[0][real], experts[1][0])
    assert torch.equal(padded.load, short.load)


def test_the_padding_of_a_batch_reaches_the_router():
    model, tokens = build(ffn="moe"), random_tokens(2, 10)
    documents = documents_of([6, 4], batch=2).clone()
    documents[1, 6:] = -1
    record = Record()
    model.hidden(tokens, documents=documents, record=record)
    assert [load.sum().item() for load in record.statistics["router_load"].values()] == [2 * 16] * 2
    assert [ids.shape for ids in record.statistics["router_experts"].values()] == [(2, 10, 2)] * 2


def test_losses_add_up_over_layers_and_reach_every_router():
    model, record = build(ffn="moe"), Record()
    model.hidden(random_tokens(2, 12), record=record)
    assert record.losses.keys() == {"balance_loss", "z_loss"}
    assert record.statistics.keys() == {"router_entropy", "router_load", "router_dropped", "router_experts"}
    assert all(list(layers) == [0, 1] for layers in record.statistics.values())
    for loss in record.losses.values():
        grads = torch.autograd.grad(loss, [block.ffn.router.weight for block in model.blocks], retain_graph=True)
        assert all(grad.any() for grad in grads)


@pytest.mark.parametrize("name", ["balance_loss", "z_loss"])
def test_a_coefficient_of_0_leaves_the_loss_out(name):
    assert name not in report(mixture(**{name: 0.0}), tokens_of())[0]


def test_a_pass_without_a_record_costs_no_statistics(monkeypatch):
    moe, x = mixture(), tokens_of()
    monkeypatch.setattr(moe, "_report", None)
    given = context()
    given.record = None
    assert torch.equal(moe(x, given), moe(x, None))


# --- precision, determinism, compilation ----------------------------------------------------------------------


def test_the_router_decides_in_fp32_under_autocast():
    moe, x = mixture(), tokens_of(4, 32)
    _, exact = report(moe, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, low = report(moe, x)
        y = moe(x, None)
    assert y.dtype == torch.bfloat16
    assert torch.equal(exact["router_experts"], low["router_experts"])
    assert torch.equal(exact["router_entropy"], low["router_entropy"])
    assert (y.float() - moe(x, None)).norm() < 0.02 * y.float().norm()


def test_gradients_are_the_same_bit_for_bit_twice(path):
    moe, x = mixture(top_k=3), tokens_of(4, 64).requires_grad_()
    first, second = (torch.autograd.grad(moe(x, None).square().sum(), [x, *moe.parameters()]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("gradient", [True, False])
def test_a_token_is_computed_alike_whatever_shares_its_experts(gradient):
    """Bit for bit, in fp32 on a CPU: what law 3 stands on."""
    moe, x = mixture(experts=16, hidden=96), tokens_of(1, 24)  # three rows per expert on average: often one, often many
    with torch.set_grad_enabled(gradient):
        whole = moe(x, None)
        for seed in range(20):
            others = tokens_of(1, 24, seed=seed + 1)
            others[:, 7:12] = x[:, 7:12]
            assert torch.equal(moe(others, None)[:, 7:12], whole[:, 7:12])


@pytest.mark.parametrize("options", [{}, {"bias_update": 0.1, "capacity_factor": 0.5, "shared_experts": 1}], ids=str)
def test_a_model_compiles_in_one_piece(options):
    model = build(ffn=small("ffn", "moe", **options), bias=True)
    tokens, documents = random_tokens(2, 12), documents_of([5, 7], batch=2)

    def run(tokens, documents):
        record = Record()
        return model.hidden(tokens, documents=documents, record=record), record

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for compute in (run, compiled):
        hidden, record = compute(tokens, documents)
        loss = hidden.sin().sum() + sum(record.losses.values())
        results.append((record, [hidden, *torch.autograd.grad(loss, model.parameters(), allow_unused=True)]))
    (expected, tensors), (found, compiled_tensors) = results
    for one, other in zip(tensors, compiled_tensors, strict=True):
        assert (other - one).norm() <= 1e-5 * one.norm()
    torch.testing.assert_close(found.losses, expected.losses)
    torch.testing.assert_close(found.statistics, expected.statistics)
    if options:
        assert model.blocks[0].ffn.load.sum() == 2 * 2 * 24  # both runs count


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["default", "before", "shared", "capacity", "selection bias", "without bias"])
def test_bf16_on_a_gpu_is_nearly_the_loop_over_tokens_in_fp32(variant):
    moe, x = mixture(**VARIANTS[variant]), tokens_of(2, 24)
    direction = torch.randn(2, 24, DIM)
    inputs = x.clone().requires_grad_()
    y = by_hand(moe, inputs)
    expected = [y, *torch.autograd.grad((y * direction).sum(), [inputs, *moe.parameters()], allow_unused=True)]
    moe, inputs = moe.cuda(), x.cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = moe(inputs, None)
    assert y.dtype == torch.bfloat16
    found = [y, *torch.autograd.grad((y.float() * direction.cuda()).sum(), [inputs, *moe.parameters()])]
    for one, other in zip(found, expected, strict=True):
        assert (one.float().cpu() - other).norm() < 0.03 * other.norm()


# --- initial weights, budget -------------------------------------------------------------------------------


def test_an_expert_starts_alike_however_many_there_are():
    few, many = (Decoder(config(ffn=small("ffn", "moe", experts=n))).blocks[1].ffn.experts for n in (4, 8))
    for name in ("gate", "up", "out"):
        one, other = getattr(few, name).weight, getattr(many, name).weight
        assert torch.equal(one, other[:4])
        assert len({row.sum().item() for row in other}) == 8


def test_expert_weights_are_as_wide_as_the_dense_ones_at_the_start():
    experts = Decoder(config(ffn=small("ffn", "moe", experts=64), depth=8)).blocks[0].ffn.experts
    std = (2 / (5 * 32)) ** 0.5
    assert experts.up.weight.std().item() == pytest.approx(std, rel=0.02)
    assert experts.out.weight.std().item() == pytest.approx(std / 4, rel=0.02)


def test_all_biases_are_flat_and_start_at_0():
    model = Decoder(config(ffn=small("ffn", "moe", shared_experts=1), bias=True))
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    assert any("experts" in name for name in biases)
    assert all(p.ndim == 1 and not p.any() for p in biases.values())


@pytest.mark.parametrize("bias", [False, True])
def test_the_budget_counts_what_one_token_meets(bias):
    """experts 5, top_k 2, shared 1, hidden 24; SwiGLU has three matrices."""
    changes = {"experts": 5, "shared_experts": 1, "hidden": 24}
    sparse = budget(build(ffn=small("ffn", "moe", **changes), bias=bias))
    dense = budget(build(ffn=small("ffn", "swiglu", hidden=24), bias=bias))
    expert = 3 * 32 * 24 + bias * (2 * 24 + 32)
    router = 5 * 32
    assert sparse.total - dense.total == 2 * (5 * expert + router)
    assert sparse.total - sparse.active == 2 * 3 * expert
    assert sparse.flops_per_token - dense.flops_per_token == 2 * 2 * (2 * 3 * 32 * 24 + router)
    assert sparse.kv_bytes_per_token == dense.kv_bytes_per_token


# --- what is refused -------------------------------------------------------------------------------------------


class Square(FeedForward):
    def __init__(self, given: Given, *, hidden: int = 2):
        super().__init__()


class Doubled(FFNS.component("relu")):
    """Its formula is not the dense one any more."""

    def forward(self, x, context):
        return 2 * super().forward(x, context)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"experts": 0}, "model.ffn.experts=0"),
        ({"top_k": 0}, "model.ffn.top_k=0"),
        ({"top_k": 5}, "model.ffn.top_k=5"),
        ({"top_k": 1}, "model.ffn.softmax=after"),
        ({"softmax": "during"}, "model.ffn.softmax='during'"),
        ({"shared_experts": -1}, "model.ffn.shared_experts=-1"),
        ({"balance_loss": -0.1}, "model.ffn.balance_loss=-0.1"),
        ({"balance_loss": math.nan}, "model.ffn.balance_loss=nan"),
        ({"z_loss": -0.1}, "model.ffn.z_loss=-0.1"),
        ({"bias_update": -0.1}, "model.ffn.bias_update=-0.1"),
        ({"capacity_factor": 0.0}, "model.ffn.capacity_factor=0.0"),
        ({"hidden": 0}, "model.ffn.hidden=0"),
        ({"expert": "swigloo"}, "model.ffn.expert: .* did you mean 'swiglu'"),
        ({"expert": "moe"}, "model.ffn.expert: 'moe' is not a dense FFN.* valid: geglu, gelu, relu, relu2, swiglu"),
        ({"expert": {"hidden": 8}}, "model.ffn.expert: 'None'"),
        ({"expert": "square"}, "model.ffn.expert: 'square'"),
        ({"expert": "doubled"}, "model.ffn.expert: 'doubled'"),
        ({"expert": {"name": "relu", "tanh": True}}, "model.ffn.expert.tanh"),
        ({"expert": {"name": "gelu", "tanh": 3}}, "model.ffn.expert.tanh=3"),
        ({"expert": {"name": "gelu", "hidden": 8}, "hidden": 8}, "model.ffn.hidden=8"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(enrol, options, said):
    enrol("ffn", "square", Square)
    enrol("ffn", "doubled", Doubled)
    with pytest.raises(AblateError, match=said) as refusal:
        build(ffn={"name": "moe", "experts": 4, **options})
    assert "\n" not in str(refusal.value)
