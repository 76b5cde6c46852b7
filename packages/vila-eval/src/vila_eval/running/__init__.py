"""Running tasks: select, open, answer (in one process or several), score."""
