"""How long a training step takes, with everything that a real run does around it."""
