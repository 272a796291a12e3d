"""The configuration: every preset builds, every part can be swapped, a cycle goes over depth."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import ablate
from ablate.compose import compose_config, config_dir, plain
from ablate.errors import AblateError
from ablate.model.config import AXES
from ablate.training.parts import assemble

from .harness import SCALARS

CONF = Path(config_dir())
PRESETS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "base")
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


def test_presets_are_what_they_are_named_after():
    made = {preset: ablate.build(preset, SCALARS) for preset in ("gqa_rope", "transformer_2017", "gpt2", "llama3")}
    assert {preset: [names(model, axis)[0] for axis in AXES] for preset, model in made.items()} == {
        "gqa_rope": ["rmsnorm", "pre", "gqa", "rope", "full", "swiglu"],
        "transformer_2017": ["layernorm", "post", "mha", "sinusoidal", "full", "relu"],
        "gpt2": ["layernorm", "pre", "mha", "learned", "full", "gelu"],
        "llama3": ["rmsnorm", "pre", "gqa", "rope", "full", "swiglu"],
    }
    assert made["llama3"].config.position == {"name": "rope", "theta": 500000.0}
    assert not made["llama3"].config.tie_embeddings
    assert made["gpt2"].config.bias and made["gpt2"].config.ffn["tanh"]


@pytest.mark.parametrize(("axis", "choice"), CHOICES, ids=lambda value: value)
def test_every_component_can_be_swapped_in(axis, choice):
    model = ablate.build("gqa_rope", [*SCALARS, f"model/{axis}={choice}"])
    assert names(model, axis) == (["full", "local"] if choice == "alternating" else [choice] * 2)
    others = set(AXES) - {axis}
    default = ablate.build("gqa_rope", SCALARS)
    assert {other: names(model, other) for other in others} == {other: names(default, other) for other in others}


def test_every_registered_component_has_its_yaml():
    """The registered ones of the house; a user's live elsewhere."""
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
    assert "_target_" not in str(plain(config.model))
    assert "_target_" not in str(plain(config.data))


@pytest.mark.parametrize("group", ["optimizer", "scheduler", "debug", "trainer", "data", "logger"])
def test_every_option_of_a_group_composes(group):
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert options
    for option in options:
        assert compose_config("train", [f"{group}={option}"])
