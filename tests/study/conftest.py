from training.conftest import command, known_peak, place, shared  # noqa: F401
