"""PMC-VQA: the answer must be the letter alone. Source: `llava/eval/pmcvqa.py` of NVlabs/VILA."""

from vila_eval.metrics.choices.scoring import letter_metric


def extract_lone_letter(answer: str) -> str | None:
    """Return the answer if it is a single character, ignoring white space around it; otherwise None."""
    text = answer.strip()
    return text if len(text) == 1 else None


LETTER_ALONE = letter_metric("letter_alone", lambda answer, _: extract_lone_letter(answer))
"""Lower-case letters are wrong too."""
