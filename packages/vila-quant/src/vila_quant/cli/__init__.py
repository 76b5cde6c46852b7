"""The command line `vila-quant`; `vila quant` is the same."""
