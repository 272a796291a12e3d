"""The configuration: every preset builds, every part can be swapped, a cycle goes over depth."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import ablate
from ablate.compose import compose_config, config_dir, plain
from ablate.errors import AblateError
from ablate.model.config import AXES, DecoderConfig
from ablate.training.optimizer import OPTIMIZERS
from ablate.training.parts import assemble
from ablate.training.scheduler import SCHEDULES

from .harness import SCALARS

CONF = Path(config_dir())
FULL_SIZE = ["llama3_1b", "llama3_8b", "llama3_70b", "llama3_405b", "phi3_mini"]  # the others are of base.yaml's size
PRESETS = sorted({path.stem for path in (CONF / "model").glob("*.yaml")} - {"base", *FULL_SIZE})
CHOICES = [
    (axis, path.stem)
    for axis in AXES
    for path in sorted((CONF / "model" / axis).glob("*.yaml"))
    if path.stem != "cycle"
]
SMALL = [*SCALARS, "data=text", "data.path=nowhere", "data.vocab_size=300", "trainer.accelerator=cpu"]


def names(model, axis):
    return [spec[axis]["name"] for spec in model.config.layers()]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_alone_and_for_training(preset):
    model = ablate.build(preset, SCALARS)
    parts = assemble(compose_config("train", [*SMALL, f"model={preset}"]))
    assert len(model.blocks) == len(parts.decoder.blocks) == 2
    assert parts.decoder.config.vocab_size == 300
    assert model.config.vocab_size == 4096


PARTS = {
    "gqa_rope": ["rmsnorm", "pre", "gqa", "rope", "full", "swiglu"],
    "transformer_2017": ["layernorm", "post", "mha", "sinusoidal", "full", "relu"],
    "gpt2": ["layernorm", "pre", "mha", "learned", "full", "gelu"],
    "gpt3": ["layernorm", "pre", "mha", "learned", "full local", "gelu"],
    "llama3": ["rmsnorm", "pre", "gqa", "rope", "full", "swiglu"],
    "mistral": ["rmsnorm", "pre", "gqa", "rope", "local", "swiglu"],
    "mixtral": ["rmsnorm", "pre", "gqa", "rope", "full", "moe"],
    "phi3": ["rmsnorm", "pre", "mha", "rope", "local", "swiglu"],
    "gemma2": ["rmsnorm", "sandwich", "gqa", "rope", "local full", "geglu"],
    "olmo2": ["rmsnorm", "reordered", "mha", "rope", "full", "swiglu"],
}
# What the comparison with transformers sets to other values, or cannot see.
OPTIONS = {
    "gpt2": {"bias": True, "tie_embeddings": True},
    "gpt3": {"bias": True, "tie_embeddings": True, "pattern.window": 128},
    "llama3": {"tie_embeddings": False, "position.theta": 500000.0},
    "mistral": {"tie_embeddings": False, "pattern.window": 128},
    "mixtral": {"tie_embeddings": False, "ffn.experts": 8, "ffn.top_k": 2},
    "phi3": {"tie_embeddings": False, "pattern.window": 127},
    "gemma2": {
        "tie_embeddings": True, "logit_softcap": 30.0, "attention.softcap": 50.0, "attention.head_dim": 64,
        "pattern.window": 128,
    },
    "olmo2": {"tie_embeddings": False, "attention.qk_norm": "width"},
}  # fmt: skip


@pytest.mark.parametrize("preset", FULL_SIZE)
def test_a_preset_of_full_size_composes_for_training_with_the_vocabulary_of_the_data(preset):
    model = plain(compose_config("train", [f"model={preset}"]).model)
    assert model["vocab_size"] == 4096
    assert DecoderConfig.from_dict(model).layers()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_what_they_are_named_after(preset):
    model = ablate.build(preset)
    assert [" ".join(dict.fromkeys(names(model, axis))) for axis in AXES] == PARTS[preset]
    config = OmegaConf.create(model.config.to_dict())
    expected = OPTIONS.get(preset, {})
    assert {option: OmegaConf.select(config, option) for option in expected} == expected


CYCLES = {
    "alternating": [{"name": "full"}, {"name": "local", "window": 128}],
    "strided_alternating": [{"name": "strided", "stride": 16, "part": part} for part in ("local", "stride")],
    "fixed_alternating": [{"name": "fixed", "block": 16, "summary": 4, "part": part} for part in ("block", "summary")],
}


@pytest.mark.parametrize(("axis", "choice"), CHOICES, ids=lambda value: value)
def test_every_component_can_be_swapped_in(axis, choice):
    model = ablate.build("gqa_rope", [*SCALARS, f"model/{axis}={choice}"])
    if choice in CYCLES:
        assert [spec[axis] for spec in model.config.layers()] == CYCLES[choice]
    else:
        assert names(model, axis) == [choice] * 2
    others = set(AXES) - {axis}
    default = ablate.build("gqa_rope", SCALARS)
    assert {other: names(model, other) for other in others} == {other: names(default, other) for other in others}


def test_every_registered_component_has_its_yaml():
    """The registered components of this package, without a user's."""
    for axis, registry in AXES.items():
        ours = {name for name in registry.names() if registry.component(name).__module__.startswith("ablate.")}
        assert ours <= {choice for at, choice in CHOICES if at == axis}, axis


def test_every_yaml_shows_all_options_with_their_defaults():
    for axis, registry in AXES.items():
        for name in registry.names():
            path = CONF / "model" / axis / f"{name}.yaml"
            if not path.is_file():
                continue
            node = OmegaConf.to_container(OmegaConf.load(path))
            defaults = {option: p.default for option, p in registry.options(name).items()}
            assert node == {"name": name, **defaults}, path


@pytest.mark.parametrize("axis", [OPTIMIZERS, SCHEDULES], ids=lambda axis: axis.key)
def test_every_optimiser_and_schedule_has_its_yaml_with_all_options(axis):
    paths = {path.stem: path for path in (CONF / axis.key).glob("*.yaml")}
    assert sorted(paths) == axis.names()
    for name, path in paths.items():
        node = OmegaConf.to_container(OmegaConf.load(path))
        assert axis.check(node) == node and node["name"] == name
        assert node.keys() == {"name", *axis.options(name)}


def test_scalars_and_options_reach_the_model():
    overrides = ["model.dim=48", "model.depth=3", "model.heads=6", "model.context=16", "model.vocab_size=100"]
    options = ["model.norm.eps=0.5", "model.attention.kv_heads=3", "model.ffn.hidden=40", "model.position.theta=7"]
    config = ablate.build("gqa_rope", [*overrides, *options]).config
    assert (config.dim, config.depth, config.heads, config.context, config.vocab_size) == (48, 3, 6, 16, 100)
    assert config.norm["eps"] == 0.5
    assert config.attention["kv_heads"] == 3
    assert config.ffn["hidden"] == 40
    assert config.position["theta"] == 7


def test_the_vocabulary_of_the_data_is_the_models():
    assert assemble(compose_config("train", SMALL)).decoder.embedding.weight.shape == (300, 32)
    roomy = assemble(compose_config("train", [*SMALL, "model.vocab_size=320"]))
    assert roomy.decoder.embedding.weight.shape == (320, 32)
    with pytest.raises(AblateError, match=r"model\.vocab_size=299 .* data\.vocab_size=300"):
        assemble(compose_config("train", [*SMALL, "model.vocab_size=299"]))


def test_the_context_of_the_data_is_the_models():
    assert assemble(compose_config("train", SMALL)).data.context == 32
    assert assemble(compose_config("train", [*SMALL, "data.context=16"])).data.context == 16


@pytest.mark.parametrize(
    ("overrides", "axis", "expected"),
    [
        (["model/norm=cycle", "model.norm.cycle=[rmsnorm,layernorm]"], "norm", ["rmsnorm", "layernorm", "rmsnorm"]),
        (["model/position=cycle", "model.position.cycle=[rope,rope]"], "position", ["rope"] * 3),
        (["model/pattern=alternating", "model.pattern.window=4"], "pattern", ["full", "local", "full"]),
        (["model/ffn=cycle", "model.ffn.cycle=[relu,{name:gelu,hidden:16}]"], "ffn", ["relu", "gelu", "relu"]),
    ],
)
def test_an_axis_cycles_over_depth(overrides, axis, expected):
    model = ablate.build("gqa_rope", [*SCALARS, "model.depth=3", *overrides])
    assert names(model, axis) == expected


def test_the_options_of_a_cycle_reach_the_members_that_have_them():
    model = ablate.build("gqa_rope", [*SCALARS, "model/pattern=alternating", "model.pattern.window=4"])
    assert [layer.pattern.reach(32) for layer in model.layers] == [32, 4]
    sizes = ["model/ffn=cycle", "model.ffn.cycle=[relu,{name:gelu,hidden:16}]"]
    assert [block.ffn.up.out_features for block in ablate.build("gqa_rope", [*SCALARS, *sizes]).blocks] == [128, 16]


@pytest.mark.parametrize("overrides", [[], ["data=stdlib"], ["debug=default"], ["logger=wandb"], ["trainer=cpu"]])
def test_the_command_line_composes_without_a_model_part_of_code(overrides):
    config = compose_config("train", overrides)
    for node in (config.model, config.data, config.optimizer, config.scheduler):
        assert "_target_" not in str(plain(node))


@pytest.mark.parametrize("group", ["optimizer", "scheduler", "debug", "trainer", "data", "logger"])
def test_every_option_of_a_group_composes(group):
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert options
    for option in options:
        assert compose_config("train", [f"{group}={option}"])


@pytest.mark.parametrize(
    "preset, overrides, says",
    [
        ("gqa_rpoe", [], "model: no option 'gqa_rpoe'; did you mean 'gqa_rope'?"),
        ("gqa_rope", ["model.ffn.hiden=3"], "model.ffn.hiden: no such key; did you mean 'hidden'?"),
        ("gqa_rope", ["model/attention=mha", "model.attention.kv_heads=2"], "model.attention.kv_heads: no such key"),
        ("gqa_rope", ["model/pattern=cycle"], "model.pattern.cycle: needs a value"),
        ("gqa_rope", ["model/norm=null"], "model/norm=null: expected the name of an option"),
    ],
)
def test_build_refuses_what_does_not_compose_as_the_commands_do(preset, overrides, says):
    with pytest.raises(AblateError) as refused:
        ablate.build(preset, overrides)
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)
