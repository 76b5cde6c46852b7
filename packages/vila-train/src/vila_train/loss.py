"""The training loss: cross-entropy over the learned tokens, softened over neighbouring time tokens.

Dimensions: B batch, T tokens, V vocabulary, L learned tokens, K time tokens.
"""

import torch
import torch.nn.functional as F

from vila_train.labels import IGNORE_INDEX


def causal_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss of predicting each label from the tokens before it: `[B, T, V]`, `[B, T]` int64 -> scalar (fp32)."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)


def soft_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, time_token_ids: torch.Tensor, *, std: float = 1.0
) -> torch.Tensor:
    """`causal_cross_entropy` in which a time token's target is spread over its neighbours (LITA, arXiv 2403.19046).

    The target of time token t is proportional to exp(-(t - t')² / 2 std²) over all time tokens t'. Hard and soft tokens
    share one denominator, the number of learned tokens.

    Args:
        logits: `[B, T, V]`.
        labels: `[B, T]` int64, -100 where nothing is learned.
        time_token_ids: `[K]` int64, in order of time.
        std: width of the target, in time tokens.
    """
    logits, labels = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    learned = labels != IGNORE_INDEX
    logits, labels = logits[learned], labels[learned]  # [L, V], [L]
    is_time = torch.isin(labels, time_token_ids)
    hard = F.cross_entropy(logits[~is_time], labels[~is_time], reduction="sum")
    distance = labels[is_time, None] - time_token_ids  # [L_time, K]
    target = torch.softmax(-(distance.float() ** 2) / (2 * std**2), dim=-1)
    soft = -(target * logits[is_time].log_softmax(dim=-1)[:, time_token_ids]).sum()
    return (hard + soft) / max(len(labels), 1)
