"""The valid values of the options of both tasks."""

import pytest
import torch

from ablate import AblateError
from ablate.benchmark.generation.command import Options
from ablate.benchmark.generation.measure import Workload
from ablate.benchmark.training.command import Options as TrainingOptions
from ablate.compose import compose_config


@pytest.fixture(scope="module")
def config():
    return compose_config("benchmark", ["accelerator=cpu"])


def options(config, **changes) -> Options:
    changed = config.copy()
    changed.update(changes)
    return Options.of(changed)


def test_the_grid_is_the_product_of_its_lists(config):
    chosen = options(config, prompt_tokens=[4, 5], new_tokens=7, batch=[2, 1, 2])
    assert chosen.workloads == [Workload(2, 4, 7), Workload(1, 4, 7), Workload(2, 5, 7), Workload(1, 5, 7)]


@pytest.mark.parametrize("precision", ["float32", "fp32", None])
def test_precision(config, precision):
    assert options(config, precision=precision).dtype == torch.float32
    assert options(config, precision="bfloat16").dtype == options(config, precision="bf16").dtype == torch.bfloat16


def test_a_gpu_that_has_bf16_computes_in_it(config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    chosen = options(config, accelerator="auto")
    assert (chosen.device, chosen.dtype) == (torch.device("cuda"), torch.bfloat16)
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
def test_a_wrong_value_is_refused_with_its_key(config, key, value):
    with pytest.raises(AblateError, match=f"^{key}=.*: ") as error:
        options(config, **{key: value})
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a machine without CUDA")
def test_a_gpu_that_is_not_there(config):
    with pytest.raises(AblateError, match=r"^accelerator=gpu: .* use accelerator=cpu$"):
        options(config, accelerator="gpu")


def test_the_context_is_for_the_longest_workload(config):
    chosen = options(config, prompt_tokens=[4, 8], new_tokens=[1, 8])
    chosen.check_context(16, "lower them")
    with pytest.raises(AblateError, match=r"^prompt_tokens=8 and new_tokens=8 make 16, more than model.context=15: "):
        chosen.check_context(15, "lower them")


# --- task=training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training_config():
    return compose_config("benchmark", ["task=training", "accelerator=cpu"])


def training_options(config, **changes) -> TrainingOptions:
    changed = config.copy()
    changed.update(changes)
    return TrainingOptions.of(changed, context=32)


def test_training_takes_one_precision_or_a_list(training_config):
    assert training_options(training_config).precisions == ["32-true", "bf16-mixed"]
    chosen = training_options(training_config, precisions="16-mixed", compile=True, documents_per_row=32)
    assert (chosen.precisions, chosen.compile, chosen.documents_per_row) == (["16-mixed"], [True], 32)
    assert training_options(training_config, precisions=["32-true"] * 2).precisions == ["32-true"]


BAD_IN_TRAINING = {
    "batch_size": [0, True, 1.5, "x", None, [1]],
    "documents_per_row": [0, 33, "x", None],
    "precisions": [[], "fp32", [32], ["32-true", "x"], None, True],
    "compile": [[], "perhaps", 1, [True, 0], None],
    "steps": [0, 1.5, None],
    "rounds": [0, True, "two"],
    "seed": [-1, 0.5, None],
    "peers": ["perhaps", None],
    "accelerator": ["tpu", None],
    "out": [None, 3],
}
VALUES = [(key, value) for key, values in BAD_IN_TRAINING.items() for value in values]


@pytest.mark.parametrize("key, value", VALUES, ids=str)
def test_a_wrong_value_of_training_is_refused_with_its_key(training_config, key, value):
    with pytest.raises(AblateError, match=f"^{key}=.*: ") as error:
        training_options(training_config, **{key: value})
    assert "\n" not in str(error.value)


def test_beside_transformers_only_precisions_that_both_sides_have(training_config):
    with pytest.raises(AblateError, match=r"^precisions='16-mixed': .*valid: 32-true, bf16-mixed$"):
        training_options(training_config, precisions=["16-mixed"], peers=True)
