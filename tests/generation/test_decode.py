"""Cached = uncached = alone; stop; modes; no waiting for the device."""

import dataclasses

import pytest
import torch

from ablate.errors import AblateError
from ablate.generation import Sampling, decode, generate_tokens, stream_tokens

from .models import CONTEXT, PAIRS, VOCAB, tiny

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [2, 7, 1, 8, 2], [30, 29, 28, 27, 26, 25, 24, 23]]
LONGEST = max(map(len, PROMPTS))


def naive(model, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding, spelled out: the whole text through `forward`, the largest of the last logits."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("choice", PAIRS, ids=lambda choice: "-".join(name for _, name in choice))
def test_cached_is_uncached_is_alone(choice):
    model = tiny(**dict(choice))
    count = CONTEXT - LONGEST  # past the window of 5, up to the context limit
    expected = [naive(model, prompt, count) for prompt in PROMPTS]
    assert generate_tokens(model, PROMPTS, count) == expected
    assert generate_tokens(model, PROMPTS, count, use_cache=False) == expected
    for prompt, ids in zip(PROMPTS, expected, strict=True):
        assert generate_tokens(model, [prompt], count) == [ids]


@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_cycles_and_equal_lengths(kernel, use_cache):
    model = tiny(kernel=kernel, pattern={"cycle": ["full", "local"], "window": 3})
    prompts = [PROMPTS[0], PROMPTS[3]]
    expected = [naive(model, prompt, 16) for prompt in prompts]
    assert generate_tokens(model, prompts, 16, use_cache=use_cache) == expected
    assert generate_tokens(model, torch.tensor(prompts), 16, use_cache=use_cache) == expected


def test_the_context_can_be_filled_from_both_ends():
    model = tiny(position="learned")
    assert len(generate_tokens(model, [[1]], CONTEXT - 1)[0]) == CONTEXT - 1
    full = [i % VOCAB for i in range(CONTEXT - 1)]
    assert generate_tokens(model, [full], 1) == [naive(model, full, 1)]


def test_sampled_with_and_without_cache():
    model = tiny()
    options = {"temperature": 1.0, "top_k": 20, "top_p": 0.95, "seed": 5}
    assert generate_tokens(model, PROMPTS, 12, **options) == generate_tokens(
        model, PROMPTS, 12, use_cache=False, **options
    )


def test_same_seed_same_ids_other_seed_others():
    model = tiny()
    torch.manual_seed(1)
    first = generate_tokens(model, PROMPTS, 12, temperature=1.0, seed=1)
    torch.manual_seed(2)  # the global generator plays no part
    state = torch.get_rng_state()
    assert generate_tokens(model, PROMPTS, 12, temperature=1.0, seed=1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert generate_tokens(model, PROMPTS, 12, temperature=1.0, seed=2) != first


@pytest.mark.parametrize("use_cache", [True, False])
def test_stop(use_cache):
    model = tiny()
    whole = generate_tokens(model, PROMPTS, 16)
    stop = whole[0][5]
    expected = [row[: row.index(stop)] if stop in row else row for row in whole]
    assert generate_tokens(model, PROMPTS, 16, stop=stop, use_cache=use_cache) == expected
    steps = list(stream_tokens(model, PROMPTS[:1], 16, sampling=Sampling(0.0), stop=stop, use_cache=use_cache))
    assert [int(ids) for ids in steps] == whole[0][: whole[0].index(stop) + 1]  # it ends there, not at 16


def test_stopped_rows_repeat_stop():
    model = tiny()
    whole = generate_tokens(model, PROMPTS, 16)
    stop = whole[1][0]
    steps = torch.stack(list(stream_tokens(model, PROMPTS[:2], 16, sampling=Sampling(0.0), stop=stop)), 1)
    assert (steps[1] == stop).all()


def test_stream_yields_before_it_goes_on():
    model, passes = tiny(), []
    model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    steps = stream_tokens(model, PROMPTS, 4)
    assert not passes
    for expected, ids in enumerate(steps, start=1):
        assert ids.shape == (len(PROMPTS),) and ids.dtype == torch.int64
        assert len(passes) == expected  # and no pass after the last token


def test_modes_are_restored_and_gradients_stay_possible():
    model = tiny().train()
    model.blocks[1].ffn.eval()  # kept so by its owner
    before = [module.training for module in model.modules()]
    steps = stream_tokens(model, PROMPTS, 8)
    next(steps)
    assert not any(module.training for module in model.modules())
    assert not torch.is_inference_mode_enabled()
    steps.close()
    assert [module.training for module in model.modules()] == before
    generate_tokens(model, PROMPTS, 8)
    assert [module.training for module in model.modules()] == before
    model(torch.tensor(PROMPTS[:1])).sum().backward()


def test_modes_are_restored_after_an_error():
    model = tiny().train()

    def fail(*_):
        raise RuntimeError("planted")

    model.blocks[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        generate_tokens(model, PROMPTS, 8)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["ragged", "alone"])
def test_the_loop_never_waits_for_the_device(monkeypatch, prompts, use_cache):
    steps = stream_tokens(tiny(), prompts, 12, sampling=Sampling(0.8, top_k=20, top_p=0.9), use_cache=use_cache)
    next(steps)  # prefill may check its padding
    waits = []
    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, name=name, **kwargs):
            waits.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    assert len(list(steps)) == 11
    assert waits == []


@pytest.mark.gpu
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_loop_never_waits_for_cuda(use_cache):
    model = tiny().cuda()
    steps = stream_tokens(model, PROMPTS, 12, sampling=Sampling(0.8, top_k=20, top_p=0.9), use_cache=use_cache)
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(steps)) == 11
    finally:
        torch.cuda.set_sync_debug_mode("default")


BAD = [
    ([], "there are none"),
    ([[]], r"prompts\[0\] is empty"),
    ([[1], []], r"prompts\[1\] is empty"),
    ([1, 2, 3], r"prompts\[0\] is 1: .*\[\[1, 2, 3\]\]"),
    (torch.tensor([1, 2, 3]), r"prompts\[0\] is 1: .*shape \[batch, tokens\]"),
    (torch.tensor(3), "expected a list of lists"),
    (torch.zeros(2, 0, dtype=torch.int64), r"prompts\[0\] is empty"),
    (torch.ones(1, 2, 3, dtype=torch.int64), "expected integer token ids in lists of lists"),
    (torch.ones(1, 2), "holds 1.0: expected integer"),
    ("some text", "expected a list of lists"),
    ([["a"]], "holds 'a'"),
    ([[1, VOCAB]], rf"token id {VOCAB}: outside the vocabulary of {VOCAB}"),
    ([[-1]], "token id -1"),
]


@pytest.mark.parametrize("prompts, message", BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_prompts(prompts, message):
    with pytest.raises(AblateError, match=message) as error:
        stream_tokens(tiny(), prompts, 4)  # at once, not at the first step
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, None])
def test_bad_max_new_tokens(count):
    with pytest.raises(AblateError, match="max_new_tokens="):
        generate_tokens(tiny(), PROMPTS, count)


def test_bad_stop():
    with pytest.raises(AblateError, match="stop=99"):
        generate_tokens(tiny(), PROMPTS, 4, stop=99)


@pytest.mark.parametrize("use_cache", [True, False])
def test_beyond_learned_positions_is_refused(use_cache):
    model = tiny(position="learned")
    with pytest.raises(AblateError, match=f"8 tokens and max_new_tokens=17 make 25, more than the {CONTEXT} learned"):
        generate_tokens(model, PROMPTS, 17, use_cache=use_cache)
    with pytest.raises(AblateError, match=r"larger model\.context"):
        generate_tokens(model, [[1] * 30], 1, use_cache=use_cache)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("pattern", ["full", "local"])
def test_beyond_the_context_warns_once(pattern, use_cache):
    model = tiny(pattern=pattern)
    with pytest.warns(UserWarning, match=f"beyond the {CONTEXT} tokens of this model's training") as caught:
        ids = generate_tokens(model, PROMPTS, 30, use_cache=use_cache)
    assert len(caught) == 1
    assert ids == [naive(model, prompt, 30) for prompt in PROMPTS]


def test_more_learned_positions_than_context():
    model = tiny(position={"name": "learned", "max_positions": CONTEXT + 4})
    with pytest.warns(UserWarning, match="training context"):
        assert generate_tokens(model, [PROMPTS[0]], 20) == [naive(model, PROMPTS[0], 20)]
    with pytest.raises(AblateError, match=f"{CONTEXT + 4} learned positions"):
        generate_tokens(model, [PROMPTS[0]], 21)


@pytest.mark.parametrize("source", [decode._Cached, decode._Uncached])
def test_every_pass_caps_its_logits(source):
    model = tiny()
    model.config = dataclasses.replace(model.config, logit_softcap=0.5)
    with torch.no_grad():
        steps = source(model, [PROMPTS[0]], 2)
        found = [steps.prefill(), steps.step(torch.tensor([9]))]
        for logits, ids in zip(found, (PROMPTS[0], [*PROMPTS[0], 9]), strict=True):
            torch.testing.assert_close(logits, model(torch.tensor([ids]))[:, -1], rtol=0, atol=1e-5)
            assert 0.4 < logits.abs().max() <= 0.5
