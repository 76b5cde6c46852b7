"""Products compiled for the CPU at hand by numba, which the extra `vila-quant[cpu]` installs: nothing here imports without it."""

import os
import sys

import torch

if "numba" not in sys.modules:
    # numba starts a thread for each core that this one may run on: a single one, where OpenMP has bound it (OMP_PROC_BIND).
    os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))
