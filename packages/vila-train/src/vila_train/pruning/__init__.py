"""DeltaLoss: drop the samples that teach little, before fine-tuning (NVILA, arXiv 2412.04468, section on data pruning).

A sample's score is log(p_large / p_small) of its answers, for a large and a small model. About 0: both know the answer,
or neither does. Below 0: the small model is better, so the sample distracts. Above 0: hard, but learnable.
"""
