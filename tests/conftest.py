import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub and wandb are imported, so set before the tests are
os.environ["WANDB_MODE"] = "disabled"

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are fastest, and the same from run to run, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
