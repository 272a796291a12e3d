"""How long an optimiser step takes, with everything that a real run does around it."""
