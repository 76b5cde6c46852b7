"""Products compiled for the CPU at hand by numba, which the extra `vila-quant[cpu]` installs: nothing here imports without it."""
