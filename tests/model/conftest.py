from contextlib import ExitStack

import pytest

from ablate.model.config import AXES


@pytest.fixture(autouse=True)
def flex_is_not_traced(monkeypatch):
    """Each call to FlexAttention outside compiled code would be traced by the compiler: a tenth of a second."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture
def enrol():
    """Registers a component for one test: `enrol("norm", "mine", Mine)`."""

    def register(axis: str, name: str, component: type) -> type:
        return AXES[axis].register(name)(component)

    with ExitStack() as ends:
        for registry in AXES.values():
            ends.enter_context(registry.scoped())
        yield register
