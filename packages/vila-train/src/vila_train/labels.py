"""Token ids and training labels of a conversation: only the assistant's messages are trained on.

As in the reference (`llava/utils/tokenizer.py: preprocess_conversation`), the labels come from matching the tokens
against the same conversation with its answers removed: every token that does not match belongs to an answer.
"""

from collections.abc import Container, Sequence
from dataclasses import replace

from vila_core.chat import SENTINEL_TOKEN, ChatTemplate, Turn
from vila_core.encoders import ExpandedPrompt
from vila_core.tokenizer import Tokenizer

IGNORE_INDEX = -100
"""The label of a token that the loss ignores (PyTorch's default for cross-entropy)."""


def tokenize_with_labels(
    turns: Sequence[Turn], tokenizer: Tokenizer, template: ChatTemplate, *, system_prompt: bool = True
) -> tuple[list[int], list[int]]:
    """Return the T token ids of a complete conversation and its T labels: the token id in answers, -100 elsewhere.

    The end token of an answer is labelled too. If a conversation cannot be matched, all labels are -100.

    Raises:
        PromptError: the template cannot render the conversation.
    """
    turns = [replace(turn, text=turn.text.strip()) for turn in turns]
    unanswered = [replace(turn, text=SENTINEL_TOKEN) if turn.role == "assistant" else turn for turn in turns]
    ids, skeleton = (
        tokenizer.encode(
            template.render(some, tokenizer.special_tokens, generation_prompt=False, system_prompt=system_prompt)
        )
        for some in (turns, unanswered)
    )
    # SentencePiece puts an empty token before the sentinel; the second attempt removes it too.
    for tokens_before in (0, 1):
        labels = _match(ids, _cut_answers(skeleton, tokenizer.sentinel_token_id, tokens_before))
        if labels is not None:
            return ids, labels
    return ids, [IGNORE_INDEX] * len(ids)


def expand_labels(
    ids: Sequence[int], labels: Sequence[int], media_ids: Container[int], expanded: ExpandedPrompt
) -> list[int]:
    """Return the labels of the T' positions of `expanded`: `IGNORE_INDEX` for media and the texts around them.

    Args:
        ids: the T token ids that `expanded` was made from.
        labels: their labels.
        media_ids: the ids that stand for media.
        expanded: the ids with room for media.
    """
    of_text = iter([label for token, label in zip(ids, labels, strict=True) if token not in media_ids])
    in_blocks = {position for blocks in expanded.blocks for block in blocks for position in block}
    return [IGNORE_INDEX if position in in_blocks else next(of_text) for position in range(len(expanded.ids))]


def _cut_answers(skeleton: list[int], sentinel: int, tokens_before: int) -> list[int]:
    """Return `skeleton` without each sentinel, the end token after it, and `tokens_before` tokens before it."""
    cut: set[int] = set()
    for position, token in enumerate(skeleton[:-1]):
        if token == sentinel:
            cut.update(range(max(position - tokens_before, 0), position + 2))
    return [token for position, token in enumerate(skeleton) if position not in cut]


def _match(ids: list[int], skeleton: list[int]) -> list[int] | None:
    """Return the labels, or None if `skeleton` is not a subsequence of `ids`."""
    labels, matched = [IGNORE_INDEX] * len(ids), 0
    for position, token in enumerate(ids):
        if matched < len(skeleton) and token == skeleton[matched]:
            matched += 1
        else:
            labels[position] = token
    return labels if matched == len(skeleton) else None
