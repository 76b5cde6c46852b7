"""What a run will need, from shapes alone: memory of a GPU, and time."""
