"""What a study runs: its arms, their matched sizes, numbers of steps and learning rates."""
