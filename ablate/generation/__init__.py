"""Generation: sampling, the decoding loop with and without the KV cache, and its speed."""

from ablate.generation.decode import generate_tokens, stream_tokens
from ablate.generation.options import GenerationOptions
from ablate.generation.sampling import Sampling
from ablate.generation.speed import measure_generation
from ablate.generation.text import generate, stream

__all__ = [
    "GenerationOptions",
    "Sampling",
    "generate",
    "generate_tokens",
    "measure_generation",
    "stream",
    "stream_tokens",
]
