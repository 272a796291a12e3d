"""Temperature, top-k and top-p compared with a distribution computed by loops."""

import warnings

import pytest
import torch

from ablate.errors import AblateError, AblateWarning
from ablate.generation import Sampling, generate_tokens
from ablate.generation.sampling import choose

from .models import tiny

LOGITS = torch.tensor([1.0, 3.0, -1.0, 2.0, 0.5, 2.5, -4.0, 1.5])


def by_hand(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """The probability of each token, in fp64, by loops."""
    probability = (torch.tensor(logits, dtype=torch.float64) / temperature).softmax(0)
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[: top_k or len(order)]
    if top_p is not None:
        total, sum_so_far, nucleus = sum(float(probability[i]) for i in kept), 0.0, []
        for i in kept:
            if sum_so_far >= top_p:
                break
            nucleus.append(i)
            sum_so_far += float(probability[i]) / total
        kept = nucleus
    result = torch.zeros_like(probability)
    result[kept] = probability[kept]
    return result / result.sum()


def draw(logits, sampling, count=1, seed=0):
    return choose(logits.expand(count, -1), sampling, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.3, 0.75, 1.0])
def test_frequencies(temperature, top_k, top_p):
    count = 20_000
    ids = draw(LOGITS, Sampling(temperature, top_k, top_p), count)
    frequency = torch.bincount(ids, minlength=8) / count
    expected = by_hand(LOGITS.tolist(), temperature, top_k, top_p)
    assert ((frequency == 0) | (expected > 0)).all()  # nothing outside the kept set
    assert (frequency - expected).abs().max() < 4.5 * (0.25 / count) ** 0.5


def test_three_that_equal_greedy():
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    greedy = choose(logits, Sampling(0.0))
    assert torch.equal(greedy, logits.argmax(-1))
    for sampling in (Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-9), Sampling(1e-30), Sampling(1e-300)):
        assert torch.equal(choose(logits, sampling, torch.Generator().manual_seed(1)), greedy)


def test_limits_that_keep_everything_change_nothing():
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    plain = choose(logits, Sampling(), torch.Generator().manual_seed(1))
    assert torch.equal(choose(logits, Sampling(top_p=1.0), torch.Generator().manual_seed(1)), plain)


def test_top_k_keeps_exactly_k_of_equal_logits():
    ids = draw(torch.zeros(8), Sampling(top_k=3), 1000)
    assert ids.unique().numel() == 3


def test_extremes():
    logits = torch.tensor([float("-inf"), 5e4, -5e4, 4.99e4])
    for sampling in (Sampling(1.0), Sampling(1e-8), Sampling(1e8), Sampling(1.0, 4, 0.999)):
        ids = draw(logits, sampling, 500)
        assert ((ids > 0) & (ids < 4)).all()  # never a token without probability
    assert draw(logits.to(torch.float16).nan_to_num(neginf=-6e4), Sampling(), 10).eq(1).all()


def test_low_precision_logits_are_drawn_in_fp32():
    logits = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    low, high = (choose(x, Sampling(0.7), torch.Generator().manual_seed(3)) for x in (logits, logits.float()))
    assert torch.equal(low, high)


def test_the_logits_are_left_alone():
    before = LOGITS.clone()
    draw(LOGITS, Sampling(0.5, 3, 0.5), 4)
    assert torch.equal(LOGITS, before)


def test_generation_uses_the_options():
    model, prompts = tiny(), [[1, 2, 3], [4]]
    greedy = generate_tokens(model, prompts, 12)
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 0.9999}, {"temperature": 1e-9}):
        assert generate_tokens(model, prompts, 12, **{"temperature": 1.0, **options}) == greedy
    assert generate_tokens(model, prompts, 12, temperature=1.0) != greedy


BAD = {
    "temperature": [-0.1, float("nan"), float("inf"), None, "hot", True],
    "top_k": [0, -1, 2.5, float("inf"), "many", True],
    "top_p": [0, -0.5, 1.1, float("nan"), "all"],
    "min_p": [-0.1, 1, 1.5, float("nan"), "some", True],
    "repetition_penalty": [0, -1.0, float("nan"), float("inf"), None, "high", True],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD.items() for value in values])
def test_bad_options(name, value):
    with pytest.raises(AblateError, match=f"^{name}=") as error:
        Sampling(**{name: value})
    assert "\n" not in str(error.value)


def test_an_option_without_effect_is_not_silent():
    for option in ({"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.5}):
        with pytest.warns(AblateWarning, match=f"^{next(iter(option))}: no effect at temperature=0"):
            Sampling(0.0, **option)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sampling(0.0, repetition_penalty=1.5)
        Sampling(1.0, top_k=5, top_p=0.5, min_p=0.1)
