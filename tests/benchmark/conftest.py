import pytest
from training.harness import Commands

from ablate.benchmark.generation import limits


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    """Measures the machine's rates on little data: quick, but the figures mean nothing."""
    monkeypatch.setattr(limits, "BUFFER", {"cpu": 2**20, "cuda": 2**20})
    monkeypatch.setattr(limits, "measured_flops", lambda device, dtype: 1e11)


@pytest.fixture
def command(monkeypatch, capfd) -> Commands:
    """command("benchmark.py", "model.dim=32") -> status, out, err"""
    return Commands(monkeypatch, capfd)
