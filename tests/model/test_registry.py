"""Registries and configurations: what they accept, and the one-line messages that refuse the rest."""

import sys
import types
from typing import Literal

import pytest
from zoo import BASE, SCALARS, config, small

from ablate.errors import AblateError
from ablate.model.config import AXES, DecoderConfig, load_plugins, resolve_cycle
from ablate.model.decoder import Decoder
from ablate.model.kernels import KERNELS
from ablate.registry import Axis

COMPLETE = {**SCALARS, **{axis: {"name": name} for axis, name in BASE.items()}}


def refusal(**changes) -> str:
    """The message with which a model, so changed, is refused: when it is read, or else when it is built."""
    with pytest.raises(AblateError) as caught:
        Decoder(DecoderConfig.from_dict({**COMPLETE, **changes}))
    message = str(caught.value)
    assert "\n" not in message
    return message


LOCAL = {"name": "local", "window": 5}
REFUSED = {
    # what is wrong: (changes, what the one line says)
    "unknown component": (
        {"norm": {"name": "rmsnrm"}},
        ["model.norm", "'rmsnrm'", "did you mean 'rmsnorm'", "layernorm"],
    ),
    "unknown component in a cycle": (
        {"pattern": {"cycle": ["full", "locl"]}},
        ["model.pattern", "did you mean 'local'"],
    ),
    "a component that is no name": ({"norm": {"name": 3}}, ["model.norm", "rmsnorm"]),
    "no name": ({"norm": {}}, ["model.norm", "needs a name", "rmsnorm"]),
    "options without a name": ({"pattern": {"window": 5}}, ["model.pattern", "needs a name", "local"]),
    "a bare name": ({"norm": "rmsnorm"}, ["model.norm='rmsnorm'", "expected"]),
    "unknown option": ({"norm": {"name": "rmsnorm", "epz": 1.0}}, ["model.norm.epz", "rmsnorm", "did you mean 'eps'"]),
    "option of another component": (
        {"attention": {"name": "mha", "kv_heads": 2}},
        ["model.attention.kv_heads", "mha", "head_dim"],
    ),
    "option where there is none": (
        {"pattern": {"name": "full", "window": 5}},
        ["model.pattern.window", "full", "it has no options"],
    ),
    "text for a number": ({"norm": {"name": "rmsnorm", "eps": "tiny"}}, ["model.norm.eps='tiny'", "a number"]),
    "fraction for a count": (
        {"pattern": {"name": "local", "window": 5.5}},
        ["model.pattern.window=5.5", "a whole number"],
    ),
    "switch for a count": (
        {"pattern": {"name": "local", "window": True}},
        ["model.pattern.window=true", "a whole number"],
    ),
    "number for a switch": ({"norm": {"name": "layernorm", "bias": 1}}, ["model.norm.bias=1", "true or false"]),
    "null for a count": ({"pattern": {"name": "local", "window": None}}, ["model.pattern.window", "needs a value"]),
    "text for a count or null": (
        {"ffn": {"name": "gelu", "hidden": "wide"}},
        ["model.ffn.hidden='wide'", "a whole number", "null"],
    ),
    "empty cycle": ({"pattern": {"cycle": []}}, ["model.pattern.cycle=[]", "list"]),
    "a cycle that is no list": ({"pattern": {"cycle": "full"}}, ["model.pattern.cycle='full'", "list"]),
    "a cycle of nameless members": ({"pattern": {"cycle": [{"window": 5}]}}, ["model.pattern", "local"]),
    "an option that no member takes": (
        {"pattern": {"cycle": ["full", "local"], "windw": 5}},
        ["model.pattern.windw", "did you mean 'window'"],
    ),
    "an option that every member has": ({"pattern": {"cycle": ["full", LOCAL], "window": 6}}, ["model.pattern.window"]),
    "wrong type beside a cycle": (
        {"pattern": {"cycle": ["full", "local"], "window": "x"}},
        ["model.pattern.window='x'", "a whole number"],
    ),
    "absolute positions in a mixed cycle": (
        {"position": {"cycle": ["learned", "rope"]}},
        ["model.position.cycle", "learned"],
    ),
    "two absolute positions": (
        {"position": {"cycle": ["sinusoidal", {"name": "sinusoidal", "theta": 9.0}]}},
        ["model.position.cycle", "sinusoidal"],
    ),
    "window 0": ({"pattern": {"name": "local", "window": 0}}, ["model.pattern.window=0", "at least 1"]),
    "kv_heads that do not divide": (
        {"attention": {"name": "gqa", "kv_heads": 3}},
        ["model.attention.kv_heads=3", "model.heads=4", "1, 2, 4"],
    ),
    "kv_heads 0": ({"attention": {"name": "gqa", "kv_heads": 0}}, ["model.attention.kv_heads=0", "1, 2, 4"]),
    "head_dim 0": ({"attention": {"name": "mha", "head_dim": 0}}, ["model.attention.head_dim=0", "at least 1"]),
    "a bias that no projection has": (
        {"attention": {"name": "mha", "bias": ["query", "keys"]}},
        ["model.attention.bias", "keys", "query, key, value, out"],
    ),
    "epsilon 0": ({"norm": {"name": "rmsnorm", "eps": 0.0}}, ["model.norm.eps=0.0", "above 0"]),
    "negative epsilon": ({"norm": {"name": "layernorm", "eps": -1.0}}, ["model.norm.eps=-1.0", "above 0"]),
    "soft-cap 0": ({"attention": {"name": "mha", "softcap": 0.0}}, ["model.attention.softcap=0.0", "above 0"]),
    "a soft-cap that the kernel has not": (
        {"attention": {"name": "mha", "softcap": 5.0}, "kernel": "sdpa"},
        ["model.kernel=sdpa", "no soft-cap", "auto"],
    ),
    "soft-cap of the logits 0": ({"logit_softcap": 0.0}, ["model.logit_softcap=0.0", "above 0"]),
    "embeddings scaled twice": (
        {"scale_embeddings": True, "position": {"name": "sinusoidal"}},
        ["model.scale_embeddings", "sinusoidal", "already"],
    ),
    "residual scale 0": (
        {"placement": {"name": "pre", "residual_scale": 0.0}},
        ["model.placement.residual_scale=0.0", "above 0"],
    ),
    "no channels to rotate": ({"position": {"name": "rope", "fraction": 0.0}}, ["model.position.fraction=0.0", "even"]),
    "an odd number of channels to rotate": (
        {"position": {"name": "rope", "fraction": 0.375}},
        ["model.position.fraction=0.375", "3 channels", "even"],
    ),
    "more channels to rotate than there are": (
        {"position": {"name": "rope", "fraction": 1.5}},
        ["model.position.fraction=1.5", "12 channels"],
    ),
    "interpolation by 0": ({"position": {"name": "rope_linear", "factor": 0.0}}, ["model.position.factor=0.0"]),
    "slow pairs quicker than quick ones": (
        {"position": {"name": "rope_llama3", "low_freq_factor": 5.0}},
        ["model.position.low_freq_factor=5.0", "high_freq_factor=4.0"],
    ),
    "theta 0": ({"position": {"name": "rope", "theta": 0.0}}, ["model.position.theta=0.0", "above 0"]),
    "stride 0": ({"pattern": {"name": "strided", "stride": 0}}, ["model.pattern.stride=0", "at least 1"]),
    "block 0": ({"pattern": {"name": "fixed", "block": 0}}, ["model.pattern.block=0", "at least 1"]),
    "more summary than block": (
        {"pattern": {"name": "fixed", "block": 4, "summary": 5}},
        ["model.pattern.summary=5", "model.pattern.block=4"],
    ),
    "a part that the pattern has not": (
        {"pattern": {"name": "fixed", "part": "stride"}},
        ["model.pattern.part='stride'", "block, null, summary"],
    ),
    "dim that heads do not divide": ({"dim": 34}, ["model.dim=34", "model.heads=4", "head_dim"]),
    "odd heads under rope": ({"dim": 36, "heads": 4}, ["model.attention.head_dim=9", "even"]),
    "odd width under sinusoids": (
        {"dim": 33, "heads": 3, "attention": {"name": "mha"}, "position": {"name": "sinusoidal"}},
        ["model.dim=33", "even"],
    ),
    "more context than learned positions": (
        {"position": {"name": "learned", "max_positions": 31}},
        ["model.context=32", "31", "model.position.max_positions"],
    ),
    "hidden 0": ({"ffn": {"name": "relu", "hidden": 0}}, ["model.ffn.hidden=0", "at least 1"]),
    "unknown kernel": ({"kernel": "sdp"}, ["model.kernel", "'sdp'", "did you mean 'sdpa'", "auto"]),
    "unknown scalar": ({"detph": 3}, ["model.detph", "did you mean 'depth'"]),
    "unknown axis": ({"norms": {"name": "rmsnorm"}}, ["model.norms", "did you mean 'norm'"]),
    "text for a scalar": ({"dim": "wide"}, ["model.dim='wide'", "a whole number"]),
    "fraction for a scalar": ({"depth": 2.0}, ["model.depth=2.0", "a whole number"]),
    "switch for a scalar": ({"depth": True}, ["model.depth=true", "a whole number"]),
    "number for a scalar switch": ({"bias": 1}, ["model.bias=1", "true or false"]),
    "depth 0": ({"depth": 0}, ["model.depth=0", "at least 1"]),
    "negative heads": ({"heads": -4}, ["model.heads=-4", "at least 1"]),
}


@pytest.mark.parametrize("changes, says", REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_refused_in_one_line_that_names_the_key_and_the_remedy(changes, says):
    message = refusal(**changes)
    for part in says:
        assert part in message


@pytest.mark.parametrize("key", [*SCALARS, *AXES])
def test_what_has_no_default_must_be_given(key):
    with pytest.raises(AblateError, match=rf"^model\.{key}: .*needs a value"):
        DecoderConfig.from_dict({k: v for k, v in COMPLETE.items() if k != key})


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_names_its_choices(axis):
    message = refusal(**{axis: {"name": "?"}})
    assert all(name in message for name in AXES[axis].names())


@pytest.mark.parametrize("axis, name", [(axis, name) for axis in AXES for name in AXES[axis].names()])
def test_every_component_refuses_an_option_that_it_does_not_have(axis, name):
    message = refusal(**{axis: {**small(axis, name), "no_such_option": 1}})
    assert f"model.{axis}.no_such_option" in message and name in message
    assert all(option in message for option in AXES[axis].options(name))


@pytest.mark.parametrize("axis, name", [(axis, name) for axis in AXES for name in AXES[axis].names()])
def test_every_option_refuses_a_value_of_another_type(axis, name):
    for option in AXES[axis].options(name):
        message = refusal(**{axis: {**small(axis, name), option: ["not", "this"]}})
        assert f"model.{axis}.{option}=" in message and "expected" in message


@pytest.mark.parametrize("axis, name", [(axis, name) for axis in AXES for name in AXES[axis].names()])
def test_every_component_says_what_it_is(axis, name):
    assert AXES[axis].component(name).__doc__


def test_every_kernel_is_a_choice_but_those_that_only_decode():
    message = refusal(kernel="?")
    choices = ["auto", *(name for name, kernel in KERNELS.items() if not kernel.decoding_only)]
    assert all(kernel in message for kernel in choices)
    assert all(config(kernel=kernel).kernel == kernel for kernel in choices)
    for kernel in KERNELS.keys() - choices:
        assert f"model.kernel='{kernel}': no such choice" in refusal(kernel=kernel)


def test_a_whole_number_is_taken_where_a_fraction_is_wanted():
    spec = config(position={"name": "rope", "theta": 500}).layers()[0]["position"]
    assert spec == {"name": "rope", "theta": 500.0, "fraction": 1.0} and isinstance(spec["theta"], float)


def test_a_specification_has_every_option():
    assert config(attention={"name": "gqa"}).layers()[0]["attention"] == {
        "name": "gqa",
        "kv_heads": 2,
        "head_dim": None,
        "bias": None,
        "softcap": None,
        "qk_norm": None,
    }


def test_an_option_beside_a_cycle_goes_to_the_members_that_have_it():
    node = {"cycle": ["full", "local", {"name": "local", "window": 9}], "window": 5}
    specs = resolve_cycle(AXES["pattern"], node, 4)
    full, five, nine = {"name": "full"}, {"name": "local", "window": 5}, {"name": "local", "window": 9}
    assert specs == [full, five, nine, full]
    assert node == {"cycle": ["full", "local", {"name": "local", "window": 9}], "window": 5}  # and is not changed


def test_one_absolute_position_may_be_written_as_a_cycle():
    assert len(Decoder(config(position={"cycle": ["learned", "learned"]})).positions) == 1


def test_a_head_width_of_ones_own_needs_no_division():
    model = Decoder(config(dim=34, attention={"name": "mha", "head_dim": 6}))
    assert model.blocks[0].attention.query.weight.shape == (24, 34)


# --- an axis ---------------------------------------------------------------------------------------------


@pytest.fixture
def axis():
    axis = Axis("model.thing")

    @axis.register("one")
    class One:
        def __init__(self, dim: int, *, size: int, mode: Literal["fast", "slow"] = "fast", scale: float | None = None):
            self.given = (dim, size, mode, scale)

    return axis


def test_an_axis_builds_from_plain_data(axis):
    assert axis.build({"name": "one", "size": 3, "scale": 2}, 8).given == (8, 3, "fast", 2.0)
    assert axis.names() == ["one"]
    assert list(axis.options("one")) == ["size", "mode", "scale"]


@pytest.mark.parametrize(
    "node, says",
    [
        ({"name": "one"}, ["model.thing.size", "'one' needs a value"]),
        ({"name": "one", "size": 1, "mode": "fats"}, ["model.thing.mode='fats'", "'fast'", "valid: fast, slow"]),
        ({"name": "one", "size": 1, "scale": "x"}, ["model.thing.scale='x'", "a number or null"]),
        ({"name": "one", "size": 1, "dim": 8}, ["model.thing.dim", "no option 'dim'"]),
        ({"name": "won", "size": 1}, ["model.thing", "did you mean 'one'"]),
    ],
)
def test_an_axis_refuses(axis, node, says):
    with pytest.raises(AblateError) as caught:
        axis.check(node)
    assert all(part in str(caught.value) for part in says)


def test_a_name_is_given_once(axis):
    with pytest.raises(AblateError, match=r"model\.thing: 'one' is already registered by"):
        axis.register("one")(Axis)
    again = axis.component("one")
    assert axis.register("one")(again) is again  # a module that is imported twice registers twice


# --- plugins ---------------------------------------------------------------------------------------------


def test_a_plugin_registers_by_being_imported(enrol, tmp_path, monkeypatch):
    (tmp_path / "my_norms.py").write_text(
        "from torch import nn\n"
        "from ablate.model import NORMS\n"
        "@NORMS.register('mine')\n"
        "class Mine(nn.Identity):\n"
        "    def __init__(self, given):\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_norms", raising=False)
    load_plugins(["my_norms"])
    monkeypatch.delitem(sys.modules, "my_norms")
    assert type(Decoder(config(norm={"name": "mine"})).final_norm).__name__ == "Mine"


def test_a_missing_plugin_is_named(monkeypatch):
    with pytest.raises(AblateError, match=r"plugins: cannot import 'no_such_plugin'.*PYTHONPATH"):
        load_plugins(["no_such_plugin"])
    monkeypatch.setitem(sys.modules, "fine", types.ModuleType("fine"))
    load_plugins(["fine"])
