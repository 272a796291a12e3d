"""Studies: arms at a matched budget, paired by seed, to a verdict."""
