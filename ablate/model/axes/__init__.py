"""The axes of the architecture: one file an axis."""
