"""What the pages of benchmarks and studies have in common: their style, their plots, their numbers."""
