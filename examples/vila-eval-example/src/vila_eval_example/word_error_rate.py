"""Word error rate: how many words to change, add or remove to turn the answer into the reference."""

from vila_eval import Question


def word_error_rate(answer: str, question: Question) -> float:
    """Return (substitutions + insertions + deletions) / reference words. Long wrong answers score more than 1."""
    reference, hypothesis = question.answer.split(), answer.split()
    # distances[j]: Levenshtein distance from the reference words so far to the first j words of the answer
    distances = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, distances[0] = distances[0], i
        for j, word in enumerate(hypothesis, 1):
            diagonal, distances[j] = (
                distances[j],
                min(distances[j] + 1, distances[j - 1] + 1, diagonal + (word != expected)),
            )
    return distances[-1] / len(reference)
