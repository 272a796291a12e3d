"""The sampling options compared with the logits processors of transformers."""

import pytest
import torch

from ablate.generation import Sampling, generate_tokens
from ablate.generation.prompts import Batch
from ablate.generation.sampling import candidates, choose

from .models import tiny

transformers = pytest.importorskip("transformers")

WARPERS = {
    "temperature": transformers.TemperatureLogitsWarper,
    "top_k": transformers.TopKLogitsWarper,
    "top_p": transformers.TopPLogitsWarper,
    "min_p": transformers.MinPLogitsWarper,
}


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The probability of drawing each token, `[B, V]`."""
    found, ids = candidates(logits, sampling)
    return found.softmax(-1) if ids is None else torch.zeros_like(logits).scatter(1, ids, found.softmax(-1))


@pytest.mark.parametrize(
    "options",
    [
        {"min_p": 0.0},
        {"min_p": 0.3},
        {"min_p": 0.999},
        {"temperature": 0.3, "min_p": 0.02},
        {"temperature": 1.7, "top_k": 7, "min_p": 0.2},
        {"temperature": 0.6, "top_p": 0.8},
        {"temperature": 2.0, "top_p": 0.4, "min_p": 0.35},
        {"temperature": 0.9, "top_k": 40, "top_p": 0.7, "min_p": 0.05},
    ],
    ids=str,
)
def test_probabilities_are_those_of_transformers(options):
    logits = 3 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    expected = logits
    for name, warper in WARPERS.items():
        if name in options:
            expected = warper(options[name])(None, expected)
    expected = expected.softmax(-1)
    found = probabilities(logits, Sampling(**options))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(found > 0, expected > 0)
    assert options == {"min_p": 0.0} or (expected == 0).any()


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(16, 12, generator=generator), torch.randint(12, (16, 5), generator=generator)
    expected = transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    seen = torch.zeros(16, 12, dtype=torch.bool).scatter(1, ids, True)
    greedy = choose(logits, Sampling(0.0, repetition_penalty=penalty), seen=seen)
    assert torch.equal(greedy, expected.argmax(-1)) and not torch.equal(greedy, logits.argmax(-1))
    drawn = choose(logits, Sampling(0.7, repetition_penalty=penalty), torch.Generator().manual_seed(1), seen)
    assert torch.equal(drawn, choose(expected, Sampling(0.7), torch.Generator().manual_seed(1)))


def penalised(model, prompt: list[int], count: int, penalty: float) -> list[int]:
    """Greedy decoding with a repetition penalty, written as a plain loop."""
    process, ids = transformers.RepetitionPenaltyLogitsProcessor(penalty), list(prompt)
    with torch.no_grad():
        for _ in range(count):
            row = torch.tensor([ids])
            ids.append(int(process(row, model(row)[:, -1]).argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("rows", [[[1, 2, 1], [3]], [[1, 2], [3, 3]]], ids=["ragged", "equal"])
@pytest.mark.parametrize("spare", [0, 2])
def test_padding_is_no_token_that_was_seen(rows, spare):
    seen = Batch.of(rows, torch.device("cpu"), spare).seen(5)
    assert seen.tolist() == [[id in row for id in range(5)] for row in rows]


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_penalises_the_prompt_and_what_is_new(use_cache):
    model, prompts = tiny(), [[3, 1, 4, 1, 5], [7], [0, 2, 7, 1, 8, 2], [1, 2]]
    for penalty in (1.5, 0.7):
        expected = [penalised(model, prompt, 12, penalty) for prompt in prompts]
        options = {"repetition_penalty": penalty, "use_cache": use_cache}
        assert generate_tokens(model, prompts, 12, **options) == expected
        assert generate_tokens(model, torch.tensor([prompts[3]]), 12, **options) == expected[3:]
    assert expected != generate_tokens(model, prompts, 12)
