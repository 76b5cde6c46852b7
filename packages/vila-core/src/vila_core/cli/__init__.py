"""The command lines: `vila-infer` (`infer.py`) and `vila` (`main.py`, one file for each of core's sub-commands)."""
