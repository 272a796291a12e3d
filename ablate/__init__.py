"""ablate: experiments on the architecture of language models.

import ablate

model = ablate.build("gqa_rope", overrides=["model.depth=2"])
run = ablate.load("runs/...")
text = ablate.generate(run.model, run.tokenizer, "def ")
"""

import importlib

_HOMES = {
    "AblateError": "ablate.errors",
    "budget": "ablate.accounting",
    "build": "ablate.compose",
    "generate": "ablate.generation",
    "generate_tokens": "ablate.generation",
    "load": "ablate.run",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Imports torch and Hydra only when something of theirs is used, so that `import ablate` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ablate' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
