"""The measurement of generation: its keys and its limits, but not its times."""

import pytest

from ablate.errors import AblateError
from ablate.generation import measure_generation

from .models import CONTEXT, tiny


def test_keys_and_arithmetic():
    model = tiny(pattern="local")
    result = measure_generation(model, [1, 2, 3], CONTEXT - 3, rounds=2)
    assert set(result) == {
        "cached_tokens_per_s",
        "uncached_tokens_per_s",
        "speedup",
        "cached_first_token_s",
        "cache_bytes",
        "prompt_tokens",
        "new_tokens",
    }
    assert all(value > 0 for value in result.values())
    assert result["speedup"] == pytest.approx(result["cached_tokens_per_s"] / result["uncached_tokens_per_s"])
    assert (result["prompt_tokens"], result["new_tokens"]) == (3, CONTEXT - 3)
    assert result["cache_bytes"] == 2 * 2 * 5 * 2 * 4 * 4  # k and v, layers, window, kv_heads, head_dim, bytes


def test_it_stays_within_the_context():
    model, seen = tiny(), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    hidden = model.hidden
    model.hidden = lambda tokens, *args, **kwargs: (seen.append(tokens.shape[1]), hidden(tokens, *args, **kwargs))[1]
    measure_generation(model, [1], CONTEXT - 1, rounds=1)
    assert max(seen) == CONTEXT - 1
    with pytest.raises(AblateError, match=f"1 tokens and new_tokens={CONTEXT} make {CONTEXT + 1}"):
        measure_generation(model, [1], CONTEXT)


def test_one_new_token():
    assert measure_generation(tiny(), [1, 2], 1, rounds=1)["new_tokens"] == 1


@pytest.mark.parametrize("options", [{"new_tokens": 0}, {"rounds": 0}, {"new_tokens": 2.5}])
def test_bad_counts(options):
    with pytest.raises(AblateError, match=f"^{next(iter(options))}="):
        measure_generation(tiny(), [1], **{"new_tokens": 4, **options})


def test_bad_prompt():
    with pytest.raises(AblateError, match="empty"):
        measure_generation(tiny(), [], 4)
