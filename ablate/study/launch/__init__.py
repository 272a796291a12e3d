"""Starts the runs of a study, watches them, and continues those that were interrupted."""
