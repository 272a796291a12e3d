"""The judge: from the runs of a study to a verdict on each arm."""
