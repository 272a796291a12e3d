"""What the options of task=generation may be."""

import pytest
import torch

from ablate import AblateError
from ablate.benchmark.generation.command import Options
from ablate.benchmark.generation.measure import Workload
from ablate.compose import compose_config


@pytest.fixture(scope="module")
def config():
    return compose_config("benchmark", ["accelerator=cpu"])


def options(config, **changes) -> Options:
    changed = config.copy()
    changed.update(changes)
    return Options.of(changed)


def test_the_grid_is_the_product_of_its_lists(config):
    found = options(config, prompt_tokens=[4, 5], new_tokens=7, batch=[2, 1, 2])
    assert found.workloads == [Workload(2, 4, 7), Workload(1, 4, 7), Workload(2, 5, 7), Workload(1, 5, 7)]


@pytest.mark.parametrize("precision", ["float32", "fp32", None])
def test_precision(config, precision):
    assert options(config, precision=precision).dtype == torch.float32
    assert options(config, precision="bfloat16").dtype == options(config, precision="bf16").dtype == torch.bfloat16


def test_a_gpu_that_has_bf16_computes_in_it(config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    found = options(config, accelerator="auto")
    assert (found.device, found.dtype) == (torch.device("cuda"), torch.bfloat16)
    assert options(config, accelerator="gpu", precision="fp32").dtype == torch.float32
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    assert options(config, accelerator="gpu").dtype == torch.float32
    assert options(config, accelerator="cpu").device == torch.device("cpu")


BAD = {
    "rounds": [0, -1, 1.5, True, "two", None, [1]],
    "seed": [-1, 0.5, "x", None],
    "prompt_tokens": [0, [], [4, 0], [True], 1.5, "x", None, [[4]], {"a": 1}],
    "new_tokens": [[], [8, "x"]],
    "batch": [[], [1, None], False],
    "compile": ["perhaps", 1, None, [True]],
    "uncached": ["perhaps", 0],
    "peers": [2, None],
    "precision": ["float8", 16, True, ["fp32"]],
    "accelerator": ["tpu", None, 1],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in BAD.items() for value in values], ids=str)
def test_what_cannot_be_names_its_key(config, key, value):
    with pytest.raises(AblateError, match=f"^{key}=.*: ") as error:
        options(config, **{key: value})
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a machine without CUDA")
def test_a_gpu_that_is_not_there(config):
    with pytest.raises(AblateError, match=r"^accelerator=gpu: .* use accelerator=cpu$"):
        options(config, accelerator="gpu")


def test_the_context_is_for_the_longest_workload(config):
    found = options(config, prompt_tokens=[4, 8], new_tokens=[1, 8])
    found.check_context(16, "lower them")
    with pytest.raises(AblateError, match=r"^prompt_tokens=8 and new_tokens=8 make 16, more than model.context=15: "):
        found.check_context(15, "lower them")
