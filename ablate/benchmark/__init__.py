"""Two benchmarks of speed: `generation` times text with and without the KV cache; `training` times optimiser steps.

Both time several contestants round by round (`rounds`) and can compare our model with transformers' Llama (`peers`).
"""
