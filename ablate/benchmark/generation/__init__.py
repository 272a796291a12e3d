"""The speed of generation."""
