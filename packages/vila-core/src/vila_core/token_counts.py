"""Token counts of the parts of a prompt, and a check that they leave room for an answer."""

from collections import Counter

from vila_core.encoders import ExpandedPrompt
from vila_core.errors import PromptTooLongError
from vila_core.prompt import PreparedPrompt


def token_counts(prompt: PreparedPrompt, expanded: ExpandedPrompt) -> dict[str, int]:
    """Return the tokens of each part, media numbered by kind."""
    lengths = expanded.media_lengths
    counts = {"text": len(expanded.ids) - sum(lengths)}
    numbers = Counter[str]()
    for medium, length in zip(prompt.media, lengths, strict=True):
        numbers[medium.kind] += 1
        counts[f"{medium.kind} {numbers[medium.kind]}"] = length
    return counts


def require_room(prompt: PreparedPrompt, expanded: ExpandedPrompt, context: int) -> None:
    """Raise `PromptTooLongError` unless a prompt leaves room for an answer in a context of so many tokens."""
    needed = len(expanded.ids)
    if needed < context:
        return
    counts = token_counts(prompt, expanded)
    parts = ", ".join(f"{part}: {count}" for part, count in counts.items())
    by_kind = Counter({"text": counts["text"]})
    for part, tokens in counts.items():
        by_kind[part.partition(" ")[0]] += tokens if part != "text" else 0
    largest = by_kind.most_common(1)[0][0]
    advice = {"video": "Reduce num_video_frames", "image": "Reduce max_tiles"}.get(largest, "Shorten the text")
    raise PromptTooLongError(
        f"The prompt has {needed} tokens ({parts}), but the context is {context}, and the answer needs room. {advice}."
    )
