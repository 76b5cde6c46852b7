"""DeltaLoss: drop the samples that teach little, before fine-tuning.

A sample's score is log(p_large / p_small), where p is the probability that a large or a small model gives the tokens of
its answers. About 0: both know the answer, or neither does. Below 0: the small model is better, so the sample
distracts. Above 0: hard for the small model, but learnable.

Of each dataset, the ⌈keep · N⌉ samples with the highest scores are kept, whatever their sign; the paper's share is 0.5.
Source: NVILA, arXiv 2412.04468, section 2.2.1 (Dataset Pruning), equations 1 and 2. Three options are not in the paper:
`min_score` drops what is below a score even if fewer are left, `drop_hardest` drops the highest scores, among which
wrong labels are, and `per_token` divides log p by the number of tokens.
"""
