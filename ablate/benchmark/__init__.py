"""Two benchmarks of speed: `generation`, of text, with the KV cache and without it; `training`, of optimiser steps.

Both time several contestants in turn (`rounds`) and can put transformers' Llama beside a model of ours (`peers`).
"""
