"""The curves of cache bytes compared with the formula."""

import pytest
from generation.models import tiny

from ablate.benchmark.generation.cache_memory import cache_memory
from ablate.model.axes.attention import MultiHead
from ablate.model.config import AXES

CONTEXTS = [128, 256, 512, 1024, 2048, 4096]


def curves(model) -> dict[str, list[list[int]]]:
    return {curve.name: curve.points for curve in cache_memory(model)}


def own(model) -> list[str]:
    return [curve.name for curve in cache_memory(model) if curve.this]


def keys_and_values(kv_heads: int, kept: int) -> int:
    return 2 * 2 * kv_heads * 4 * kept * 4  # layers, keys and values, heads, width of a head, tokens, bytes


def test_attention_and_pattern_are_exchanged():
    assert curves(tiny()) == {
        "mha": [[n, keys_and_values(4, n)] for n in CONTEXTS],
        "gqa (2 kv heads)": [[n, keys_and_values(2, n)] for n in CONTEXTS],
        "mqa": [[n, keys_and_values(1, n)] for n in CONTEXTS],
        "gqa (2), local (window 128)": [[n, keys_and_values(2, 128)] for n in CONTEXTS],
    }


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ({}, "gqa (2 kv heads)"),
        ({"attention": "mha"}, "mha"),
        ({"attention": "mqa"}, "mqa"),
        ({"attention": {"name": "gqa", "kv_heads": 4}}, "mha"),
        ({"pattern": {"name": "local", "window": 300}}, "gqa (2), local (window 300)"),
        ({"pattern": "strided"}, "this model"),
        ({"pattern": {"cycle": ["full", "local"], "window": 5}}, "this model"),
        ({"attention": {"cycle": ["mha", "mqa"]}}, "this model"),
    ],
    ids=str,
)
def test_the_models_own_curve_is_marked_once(choice, name):
    model = tiny(**choice)
    assert own(model) == [name]
    assert curves(model)[name] == [[n, model.cache_bytes(n)] for n in CONTEXTS]


def test_it_reaches_the_models_own_context_in_its_own_dtype():
    model = tiny(context=20_000)
    wide, low = curves(model)["mqa"], curves(model.bfloat16())["mqa"]
    assert [n for n, _ in wide] == [*CONTEXTS, 8192, 16384]
    assert low == [[n, size / 2] for n, size in wide]


def test_a_window_and_heads_that_the_model_has_are_kept():
    names = curves(tiny(attention={"name": "gqa", "kv_heads": 1}, pattern={"name": "local", "window": 7}))
    assert names == {
        "mha": [[n, keys_and_values(4, n)] for n in CONTEXTS],
        "gqa (1 kv heads)": [[n, keys_and_values(1, n)] for n in CONTEXTS],  # the same as mqa
        "gqa (1), local (window 7)": [[n, keys_and_values(1, 7)] for n in CONTEXTS],
    }


def test_attention_from_a_plug_in_has_its_curve():
    class Mine(MultiHead):
        """Attention without options."""

        def __init__(self, given):
            super().__init__(given, head_dim=6)

    with AXES["attention"].scoped():
        AXES["attention"].register("mine")(Mine)
        model = tiny(attention="mine")
        assert own(model) == ["mha"]
        assert curves(model)["mha"] == [[n, 2 * 2 * 4 * 6 * n * 4] for n in CONTEXTS]


def test_what_does_not_compose_is_left_out(monkeypatch):
    components = AXES["attention"]._components
    monkeypatch.setattr(AXES["attention"], "_components", {k: v for k, v in components.items() if k != "mqa"})
    assert "mqa" not in curves(tiny()) and own(tiny()) == ["gqa (2 kv heads)"]
