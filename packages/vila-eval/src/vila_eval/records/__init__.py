"""What a run writes: the record types, the names of the files, and how they are read and written."""
