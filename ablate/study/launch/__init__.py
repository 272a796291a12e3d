"""How the runs of a study are started, watched and taken up again."""
