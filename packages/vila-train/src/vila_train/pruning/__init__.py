"""DeltaLoss: drop the samples that teach little, before fine-tuning (NVILA, arXiv 2412.04468, section on data pruning).

A sample's score is log(p_large / p_small) of its answers, for a large and a small model. About 0: both know the answer,
or neither does. Below 0: the small model is better, so the sample distracts. Above 0: hard, but learnable.

The published rule keeps the K samples with the highest scores of each dataset. So does `select` with its default,
`drop_hardest=0`, except that it keeps fewer than K if fewer have a score above 0. `drop_hardest` is not in the paper:
it also drops the highest scores, among which wrong labels are, and so keeps the middle.
"""
