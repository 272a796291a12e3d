"""Decoding gives the same with the cache, without it, and one prompt at a time; it stops, and never waits for a GPU."""

import dataclasses

import pytest
import torch

from ablate.errors import AblateError, AblateWarning
from ablate.generation import Sampling, decode, generate_tokens, prompts, stream_tokens
from ablate.generation.step import Step
from ablate.model.axes.position import POSITIONS

from .models import CONTEXT, PAIRS, VOCAB, tiny

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [2, 7, 1, 8, 2], [30, 29, 28, 27, 26, 25, 24, 23]]
LONGEST = max(map(len, PROMPTS))
ALL = Sampling(0.8, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2)


def naive(model, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding as a plain loop: the whole text through `forward`, then the largest of the last logits."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def cached(model, rows, chunk=None) -> decode._Cached:
    return decode._Cached(model, rows, Step(model, model.new_cache(len(rows), CONTEXT)), chunk)


@pytest.mark.parametrize("choice", PAIRS, ids=lambda choice: "-".join(name for _, name in choice))
def test_cached_is_uncached_is_alone(choice):
    model = tiny(**dict(choice))
    count = CONTEXT - LONGEST  # past the window of 5, up to the context limit
    expected = [naive(model, prompt, count) for prompt in PROMPTS]
    assert generate_tokens(model, PROMPTS, count) == expected
    assert generate_tokens(model, PROMPTS, count, use_cache=False) == expected
    assert generate_tokens(model, PROMPTS, count, prefill_chunk=3) == expected
    for prompt, ids in zip(PROMPTS, expected, strict=True):
        assert generate_tokens(model, [prompt], count) == [ids]


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9])
@pytest.mark.parametrize("pattern", ["full", "local", "strided"])
@pytest.mark.parametrize("rows", [PROMPTS, PROMPTS[::3], PROMPTS[2:3]], ids=["ragged", "equal", "alone"])
def test_prefill_in_chunks(rows, pattern, chunk):
    """Passes of at most `chunk` tokens give the same logits after the prompts and in the steps that follow."""
    model, passes = tiny(pattern=pattern), []
    model.blocks[0].register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    whole, parts = cached(model, rows), cached(model, rows, chunk)
    with torch.no_grad():
        expected = [whole.prefill(), *(whole.step(torch.tensor([5] * len(rows))) for _ in range(2))]
        passes.clear()
        found = [parts.prefill()]
        longest = max(map(len, rows))
        assert passes == [min(chunk, longest - start) for start in range(0, longest, chunk)]
        found += [parts.step(torch.tensor([5] * len(rows))) for _ in range(2)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


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
    options = {"temperature": 1.0, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 5}
    assert generate_tokens(model, PROMPTS, 12, **options) == generate_tokens(
        model, PROMPTS, 12, use_cache=False, **options
    )


def test_same_seed_same_ids_other_seed_others():
    model = tiny()
    torch.manual_seed(1)
    first = generate_tokens(model, PROMPTS, 12, temperature=1.0, seed=1)
    torch.manual_seed(2)  # the global generator has no effect
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
    assert [int(ids) for ids in steps] == whole[0][: whole[0].index(stop) + 1]  # on a CPU it ends there, not at step 16


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
    model.blocks[1].ffn.eval()  # a module that its owner keeps in eval mode
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
    steps = stream_tokens(tiny(), prompts, 12, sampling=ALL, use_cache=use_cache)
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
    steps = stream_tokens(model, PROMPTS, 12, sampling=ALL, use_cache=use_cache)
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


BAD_OPTIONS = [
    ({"stop": 99}, "^stop=99"),
    ({"seed": -1}, "^seed=-1"),
    ({"seed": 2**63}, "^seed="),
    ({"seed": "x"}, "^seed='x'"),
    ({"use_cache": "maybe"}, "^use_cache='maybe'"),
    ({"prefill_chunk": 0}, "^prefill_chunk=0"),
    ({"prefill_chunk": 2.0}, "^prefill_chunk=2.0"),
    ({"prefill_chunk": True}, "^prefill_chunk=true"),
    ({"prefill_chunk": 4, "use_cache": False}, "^prefill_chunk=4: no effect without the cache"),
    ({"sampling": 0.8}, "^sampling=0.8: expected a Sampling"),
]


@pytest.mark.parametrize("options, message", BAD_OPTIONS, ids=str)
def test_bad_options(options, message):
    with pytest.raises(AblateError, match=message) as error:
        stream_tokens(tiny(), PROMPTS, 4, **options)  # at once, not at the first step
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("door", [generate_tokens, stream_tokens])
def test_an_option_that_does_not_exist_is_refused(door):
    with pytest.raises(TypeError, match="temprature"):
        door(tiny(), PROMPTS, 4, temprature=0.8)


def test_the_options_of_sampling_are_named_or_gathered_not_both():
    with pytest.raises(TypeError, match="sampling"):
        generate_tokens(tiny(), PROMPTS, 4, sampling=Sampling(), temperature=0.8)


@pytest.mark.parametrize("position", POSITIONS.names())
def test_a_prompt_beyond_the_context_is_refused(position):
    model = tiny(position=position)
    with pytest.raises(
        AblateError, match=rf"^prompt: its {CONTEXT + 1} tokens .* context of {CONTEXT}.*model\.context"
    ):
        stream_tokens(model, [[1], [1] * (CONTEXT + 1)], 1)


@pytest.mark.parametrize("position", POSITIONS.names())
def test_new_tokens_beyond_the_context(position):
    """Refused for a model without further positions; others warn, and generate."""
    model, full = tiny(position=position), [i % VOCAB for i in range(CONTEXT)]
    assert (model.limit is None) == (position != "learned")
    if model.limit is not None:
        with pytest.raises(AblateError, match=r"^max_new_tokens=1: .* learned positions"):
            stream_tokens(model, [full], 1)
        return
    with pytest.warns(AblateWarning, match=f"^max_new_tokens=3 leads beyond the {CONTEXT} tokens"):
        assert generate_tokens(model, [full], 3) == [naive(model, full, 3)]


@pytest.mark.parametrize("use_cache", [True, False])
def test_more_tokens_than_memory_are_refused(monkeypatch, use_cache):
    model = tiny()  # one cached token: 2 layers of keys and values, 2 heads of 4 channels in 4 bytes
    needed = 4 * (LONGEST + 10) * (2 * 2 * 2 * 4 * 4 if use_cache else 8)
    monkeypatch.setattr(prompts, "machine_memory", lambda: needed)
    stream_tokens(model, PROMPTS, 10, use_cache=use_cache)
    monkeypatch.setattr(prompts, "machine_memory", lambda: needed - 1)
    with pytest.raises(AblateError, match=r"^max_new_tokens: 4 x 18 tokens take"):
        stream_tokens(model, PROMPTS, 10, use_cache=use_cache)
    with pytest.raises(AblateError, match=r"lower it"):
        stream_tokens(model, PROMPTS, 10**15, use_cache=use_cache)


@pytest.mark.parametrize("use_cache", [True, False])
def test_beyond_learned_positions_is_refused(use_cache):
    model = tiny(position="learned")
    with pytest.raises(
        AblateError, match=f"=17: with a prompt of 8 tokens that makes 25, more than the {CONTEXT} learned"
    ):
        generate_tokens(model, PROMPTS, 17, use_cache=use_cache)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("pattern", ["full", "local"])
def test_beyond_the_context_warns_once(pattern, use_cache):
    model = tiny(pattern=pattern)
    with pytest.warns(AblateWarning, match=f"beyond the {CONTEXT} tokens of this model's training") as caught:
        ids = generate_tokens(model, PROMPTS, 30, use_cache=use_cache)
    assert len(caught) == 1
    assert ids == [naive(model, prompt, 30) for prompt in PROMPTS]


def test_more_learned_positions_than_context():
    model = tiny(position={"name": "learned", "max_positions": CONTEXT + 4})
    with pytest.warns(UserWarning, match="training context"):
        assert generate_tokens(model, [PROMPTS[0]], 20) == [naive(model, PROMPTS[0], 20)]
    with pytest.raises(AblateError, match=f"{CONTEXT + 4} learned positions"):
        generate_tokens(model, [PROMPTS[0]], 21)


@pytest.mark.parametrize("source", [cached, lambda model, rows: decode._Uncached(model, rows, 2)])
def test_every_pass_caps_its_logits(source):
    model = tiny()
    model.config = dataclasses.replace(model.config, logit_softcap=0.5)
    with torch.no_grad():
        steps = source(model, [PROMPTS[0]])
        found = [steps.prefill(), steps.step(torch.tensor([9]))]
        for logits, ids in zip(found, (PROMPTS[0], [*PROMPTS[0], 9]), strict=True):
            torch.testing.assert_close(logits, model(torch.tensor([ids]))[:, -1], rtol=0, atol=1e-5)
            assert 0.4 < logits.abs().max() <= 0.5


@pytest.mark.parametrize("stop", ["a", 1.5, True, VOCAB, -1])
def test_stop_is_a_token_id(stop):
    with pytest.raises(AblateError, match=r"^stop="):
        generate_tokens(tiny(), [[1]], 2, stop=stop)
