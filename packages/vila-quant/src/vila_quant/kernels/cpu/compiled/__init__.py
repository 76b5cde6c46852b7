"""Products compiled for the CPU at hand by numba, which the extra `vila-quant[cpu]` installs: nothing here imports without it."""

import os
import sys

import torch

_COUNTED = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1

if "numba" not in sys.modules and torch.get_num_threads() > _COUNTED:
    # numba starts a thread for each core that this one may run on: a single one, where OpenMP has bound it (OMP_PROC_BIND).
    os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))
