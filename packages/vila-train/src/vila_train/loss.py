"""The training loss: cross-entropy over the labelled tokens, with soft targets for time tokens.

Dimensions: B batch, T tokens, V vocabulary, L labelled tokens, K time tokens.
"""

import torch
import torch.nn.functional as F

from vila_train.labels import IGNORE_INDEX


def causal_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of predicting each label from the tokens before it: `[B, T, V]`, `[B, T]` -> fp32 scalar."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)


def soft_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, time_token_ids: torch.Tensor, *, std: float = 1.0
) -> torch.Tensor:
    """Return the `causal_cross_entropy` with soft targets for time tokens (LITA, arXiv 2403.19046).

    The target of time token t is proportional to exp(-(t - t')² / 2 std²) over all time tokens t'. Hard and soft tokens
    share one denominator, the number of labelled tokens.

    Args:
        logits: `[B, T, V]`.
        labels: `[B, T]` int64, -100 for tokens without a label.
        time_token_ids: `[K]` int64, in order of time.
        std: standard deviation of the target, in time tokens.
    """
    logits, labels = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    labelled = labels != IGNORE_INDEX
    logits, labels = logits[labelled], labels[labelled]  # [L, V], [L]
    is_time = torch.isin(labels, time_token_ids)
    hard = F.cross_entropy(logits[~is_time], labels[~is_time], reduction="sum")
    distance = labels[is_time, None] - time_token_ids  # [L_time, K]
    target = torch.softmax(-(distance.float() ** 2) / (2 * std**2), dim=-1)
    soft = -(target * logits[is_time].log_softmax(dim=-1)[:, time_token_ids]).sum()
    return (hard + soft) / max(len(labels), 1)
