"""The program `vila-eval`, also `vila eval`."""
