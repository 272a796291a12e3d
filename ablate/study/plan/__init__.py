"""What a study runs: its arms, matched and held to one budget, and their learning rates."""
