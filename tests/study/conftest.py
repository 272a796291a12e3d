from training.conftest import command, known_peak, one_thread, place, shared  # noqa: F401
