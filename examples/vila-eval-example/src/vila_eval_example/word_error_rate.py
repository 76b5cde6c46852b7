"""The word error rate: how many words must be changed, added or removed to make the answer the reference."""

from vila_eval import Question


def word_error_rate(answer: str, question: Question) -> float:
    """Return (substitutions + insertions + deletions) / words of the reference. 0 is a perfect answer; a long wrong one exceeds 1."""
    reference, hypothesis = question.answer.split(), answer.split()
    # distances[j] is that of the reference's words so far to the answer's first j words (Levenshtein).
    distances = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, distances[0] = distances[0], i
        for j, word in enumerate(hypothesis, 1):
            diagonal, distances[j] = (
                distances[j],
                min(distances[j] + 1, distances[j - 1] + 1, diagonal + (word != expected)),
            )
    return distances[-1] / len(reference)
