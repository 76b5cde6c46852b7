"""`python -m vila_train`, which torchrun starts in each process: `torchrun --nproc-per-node 4 -m vila_train run …`."""

from vila_train.program import main

if __name__ == "__main__":
    main()
