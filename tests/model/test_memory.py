"""A decoder that does not fit into this machine's memory is refused before it is allocated."""

import os

import pytest
import torch
from zoo import config

import ablate
from ablate.compose import compose_config
from ablate.errors import AblateError
from ablate.model import memory
from ablate.model.decoder import Decoder, check_memory
from ablate.training.parts import assemble

GIB = 2**30
CPU = ["data=text", "data.path=nowhere", "data.vocab_size=4096", "trainer.accelerator=cpu"]


@pytest.fixture
def machine(monkeypatch):
    """machine(n): from now on there are n bytes, and allocating a matrix of a decoder is an error."""

    def has(size: int) -> None:
        monkeypatch.setattr(memory, "machine_memory", lambda: size)
        real = torch.nn.Linear.reset_parameters

        def reset(linear):
            assert linear.weight.is_meta, "allocated"
            real(linear)

        monkeypatch.setattr(torch.nn.Linear, "reset_parameters", reset)

    return has


@pytest.mark.parametrize(
    ("preset", "needed"), [("llama3_8b", "30 GiB"), ("llama3_70b", "263 GiB"), ("llama3_405b", "1,512 GiB")]
)
def test_a_model_beyond_the_machine_is_refused_before_anything_is_allocated(machine, preset, needed):
    machine(24 * GIB)
    with pytest.raises(AblateError, match=r"^model\.dim=\d+, model\.depth=\d+: ") as error:
        ablate.build(preset)
    line = str(error.value)
    assert f" parameters take {needed} to hold in fp32, and this machine has 24 GiB" in line
    assert 'torch.device("meta")' in line and "\n" not in line


def test_training_takes_four_times_the_weights(machine):
    """7.0 billion parameters with a vocabulary of 4096: 26 GiB, and 105 with gradients and AdamW's moments."""
    machine(64 * GIB)
    with pytest.raises(AblateError, match=r"take 105 GiB to train in fp32, .* has 64 GiB: lower model\.dim .* a GPU"):
        assemble(compose_config("train", [*CPU, "model=llama3_8b"]))


@pytest.mark.parametrize(
    "wide",
    [
        {"ffn": {"name": "gelu", "hidden": 10**9}},
        {"attention": {"name": "mha", "head_dim": 10**8}},
        {"vocab_size": 10**9},
        {"context": 10**9, "position": {"name": "learned"}},
        {"depth": 3, "dim": 2**15},
    ],
    ids=str,
)
def test_whatever_makes_it_large(machine, wide):
    machine(GIB)
    with pytest.raises(AblateError, match="parameters take"):
        Decoder(config(**wide))


def test_the_line_is_drawn_at_what_there_is(monkeypatch):
    wide = config(vocab_size=2**20)  # 128 MiB of embedding, tied
    with torch.device("meta"):
        size = 4 * sum(p.numel() for p in Decoder(wide).parameters())
    monkeypatch.setattr(memory, "machine_memory", lambda: size - 1)
    with pytest.raises(AblateError, match="parameters take"):
        check_memory(wide)
    monkeypatch.setattr(memory, "machine_memory", lambda: size)
    check_memory(wide)
    with pytest.raises(AblateError, match="to train"):
        check_memory(wide, training=True)


def test_the_meta_device_has_room_for_everything(machine):
    machine(0)
    with torch.device("meta"):
        assert ablate.build("llama3_70b").embedding.weight.is_meta


def test_a_small_model_is_not_counted(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 0)
    Decoder(config())


def test_a_container_has_what_its_limit_leaves(monkeypatch, tmp_path):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert memory.machine_memory() == physical
    for limit, expected in (("max\n", physical), (f"{GIB}\n", min(GIB, physical)), (f"{2**60}\n", physical)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory.machine_memory() == expected
