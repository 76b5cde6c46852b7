"""Products compiled for this CPU by numba. Needs the extra `vila-quant[cpu]`."""

import os
import sys

import torch

_COUNTED = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1

if "numba" not in sys.modules and torch.get_num_threads() > _COUNTED:
    # numba starts one thread per core that this thread may run on: only one if OpenMP has bound it (OMP_PROC_BIND).
    os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))
