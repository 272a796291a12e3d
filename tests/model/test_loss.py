"""The chunked loss equals the plain cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from ablate.model.loss import IGNORE, next_token_loss, token_losses

WIDTH, VOCAB = 16, 61
SCORED = {
    "all": lambda targets: targets,
    "some": lambda targets: targets.where(torch.rand(targets.shape, generator=seeded(5)) < 0.4, IGNORE),
    "the first": lambda targets: targets.where(torch.arange(targets.numel()).view_as(targets) == 0, IGNORE),
    "none": lambda targets: torch.full_like(targets, IGNORE),
}
SHAPES = [(1, 1), (2, 7), (1, 512), (1, 513), (2, 700), (3, 512)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def case(shape, scored):
    hidden = torch.randn(*shape, WIDTH, generator=seeded(1)).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=seeded(2)).requires_grad_()
    targets = torch.randint(VOCAB, shape, generator=seeded(3))
    return hidden, weight, SCORED[scored](targets)


def plain(hidden, weight, targets, softcap=None):
    """Zero, not NaN, where no target is scored."""
    logits = (hidden @ weight.t()).flatten(0, 1)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / (targets != IGNORE).sum().clamp(min=1)


@pytest.mark.parametrize("softcap", [None, 2.0], ids=["", "capped"])
@pytest.mark.parametrize("scored", SCORED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_are_those_of_cross_entropy_on_all_logits(shape, scored, softcap):
    hidden, weight, targets = case(shape, scored)
    loss, expected = next_token_loss(hidden, weight, targets, softcap), plain(hidden, weight, targets, softcap)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(3 * loss, [hidden, weight])
    for gradient, exact in zip(found, torch.autograd.grad(3 * expected, [hidden, weight]), strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-7)


def test_a_tied_weight_receives_both_gradients():
    _, weight, targets = case((2, 300), "some")
    tokens = torch.randint(VOCAB, (2, 300), generator=seeded(4))
    found = torch.autograd.grad(next_token_loss(F.embedding(tokens, weight), weight, targets), weight)
    expected = torch.autograd.grad(plain(F.embedding(tokens, weight), weight, targets), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_of_the_two_may_be_frozen(frozen):
    inputs = list(case((2, 9), "all"))
    expected = torch.autograd.grad(plain(*inputs), inputs[1 - frozen])[0]
    inputs[frozen] = inputs[frozen].detach()
    (found,) = torch.autograd.grad(next_token_loss(*inputs), inputs[1 - frozen])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scored", SCORED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_token_losses_are_cross_entropy_without_reduction(shape, scored):
    hidden, weight, targets = case(shape, scored)
    losses = token_losses(hidden, weight, targets)
    expected = F.cross_entropy((hidden @ weight.t()).flatten(0, 1), targets.flatten(), reduction="none")
    assert losses.shape == shape and losses.dtype == torch.float32 and not losses.requires_grad
    torch.testing.assert_close(losses, expected.view(shape), rtol=1e-5, atol=1e-5)


def test_huge_logits_do_not_overflow():
    hidden, weight, targets = case((2, 7), "all")
    loss = next_token_loss(hidden * 100, weight * 10, targets)
    torch.testing.assert_close(loss, plain(hidden * 100, weight * 10, targets), rtol=1e-5, atol=0)


def test_under_autocast_the_loss_and_its_gradients_are_near():
    hidden, weight, targets = case((2, 300), "some")
    expected = plain(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = next_token_loss(hidden, weight, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    found = torch.autograd.grad(loss, [hidden, weight])
    for gradient, exact in zip(found, torch.autograd.grad(expected, [hidden, weight]), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - exact).norm() < 0.05 * exact.norm()


def test_a_default_dtype_makes_no_difference():
    """Lightning sets one around a model that is wholly in low precision."""
    hidden, weight, targets = case((2, 7), "some")
    expected = next_token_loss(hidden, weight, targets)
    torch.set_default_dtype(torch.bfloat16)
    try:
        loss = next_token_loss(hidden, weight, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


def test_second_derivatives_of_the_loss_are_right_or_refused():
    hidden, weight, targets = case((1, 5), "all")
    probe = torch.randn(1, 5, WIDTH)

    def product(loss):
        (gradient,) = torch.autograd.grad(loss(hidden, weight, targets), hidden, create_graph=True)
        return torch.autograd.grad((gradient * probe).sum(), hidden, allow_unused=True)[0]

    try:
        found = product(next_token_loss)
    except RuntimeError:
        return
    torch.testing.assert_close(torch.zeros_like(hidden) if found is None else found, product(plain))
