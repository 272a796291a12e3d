"""Plans a study: its arms, their matched sizes, numbers of steps and learning rates."""
