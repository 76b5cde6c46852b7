"""The files of a run: record types, file names, reading and writing."""
