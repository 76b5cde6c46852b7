"""Token ids and training labels of a conversation: only the assistant's messages are trained on, or some of them.

The reference (`llava/utils/tokenizer.py: preprocess_conversation`) matches tokens against the same conversation with
its answers removed, which mislabels a token of an answer that equals the next token of the template. Here labels are
the tokens that the characters of an answer become.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

from vila_core.chat import SENTINEL_TOKEN, ChatTemplate, Turn
from vila_core.encoders import ExpandedPrompt
from vila_core.tokenizer import Tokenizer

IGNORE_INDEX = -100
"""The label of a token that the loss ignores (PyTorch's default for cross-entropy)."""


def tokenize_with_labels(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    system_prompt: bool = True,
    learned: Sequence[bool] | None = None,
    split: bool = False,
) -> tuple[list[int], list[int]]:
    """Return the T token ids of a complete conversation and its T labels: the token id in answers, -100 elsewhere.

    The token after an answer, which ends it, is labelled too. If the template does not keep the answers as they are
    (a separator template drops an empty one), all labels are -100.

    Args:
        turns: the conversation.
        tokenizer: of the model.
        template: of the model.
        system_prompt: use the template's default system prompt if the conversation has none.
        learned: for each turn, whether it is labelled if it is an answer; None: all answers are.
        split: as VILA-U was trained: the texts between media are tokenized one by one, and the spaces before an answer,
            which a prompt leaves out, are labelled too.

    Raises:
        PromptError: the template cannot render the conversation.
    """
    chosen = [True] * len(turns) if learned is None else learned
    chosen = [one for one, turn in zip(chosen, turns, strict=True) if turn.role == "assistant"]
    turns = [replace(turn, text=turn.text.strip()) for turn in turns]
    unanswered = [replace(turn, text=SENTINEL_TOKEN) if turn.role == "assistant" else turn for turn in turns]
    text, skeleton = (
        template.render(some, tokenizer.special_tokens, generation_prompt=False, system_prompt=system_prompt)
        for some in (turns, unanswered)
    )
    ids, spans = tokenizer.encode_split_with_spans(text) if split else tokenizer.encode_with_spans(text)
    labels = [IGNORE_INDEX] * len(ids)
    answers = _answer_spans(text, skeleton, [turn.text for turn in turns if turn.role == "assistant"])
    # A template may drop a first turn that is not the user's.
    for answer, is_learned in zip(answers, chosen[len(chosen) - len(answers) :], strict=True):
        if split:
            answer = range(len(text[: answer.start].rstrip(" ")), answer.stop)
        for position in _tokens_of(answer, spans) if is_learned else ():
            labels[position] = ids[position]
    return ids, labels


def _answer_spans(text: str, skeleton: str, answers: Sequence[str]) -> list[range]:
    """Return the characters of each answer in `text`, which is `skeleton` with answers in place of the sentinels.

    Empty if it is not.
    """
    pieces = skeleton.split(SENTINEL_TOKEN)
    answers = answers[len(answers) - len(pieces) + 1 :]  # a template may drop a first turn that is not the user's
    spans: list[range] = []
    place = 0
    for piece, answer in zip(pieces, [*answers, ""], strict=False):
        start = place + len(piece)
        if not text.startswith(piece, place) or not text.startswith(answer, start):
            return []
        place = start + len(answer)
        spans.append(range(start, place))
    return spans[:-1] if place == len(text) and len(spans) == len(pieces) else []


def _tokens_of(answer: range, spans: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Yield the positions of the tokens that have a character of `answer`, and of the token after them."""
    for position, (start, end) in enumerate(spans):
        if start < answer.stop and end > answer.start and start < end:
            yield position
        elif start >= answer.stop and start < end:
            yield position
            return


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
