"""NExT-QA, multiple choice. Source: `parse_multi_choice_response` of NExT-QA in lmms-eval."""

from vila_eval.metrics.choices.parsing import last_bracketed, last_found, strip_and_pad
from vila_eval.metrics.choices.scoring import letter_metric


def extract_nextqa_choice(answer: str, options: tuple[str, ...]) -> str | None:
    """Return the chosen letter by the first rule that finds one, after `strip_and_pad`:

    1. The letter that comes last as "(B)".
    2. A letter before a space, or else before a full stop, even inside a word. Of several, the one that comes last as
       " B ", or the first if none does.
    3. In an answer of more than five words, the option whose text comes last, ignoring case.

    lmms-eval draws a random letter where this returns None; here such an answer is wrong.
    """
    text = strip_and_pad(answer)
    letters = "".join(chr(ord("A") + index) for index in range(len(options)))
    if bracketed := last_bracketed(text, letters):
        return bracketed
    for mark in " .":
        if found := [letter for letter in letters if f"{letter}{mark}" in text]:
            return found[0] if len(found) == 1 else max(found, key=lambda letter: text.rfind(f" {letter} "))
    if len(text.split()) <= 5:
        return None
    return last_found(text.lower(), {letter: option.lower() for letter, option in zip(letters, options, strict=True)})


NEXTQA_CHOICE = letter_metric(
    "nextqa_choice", lambda answer, question: extract_nextqa_choice(answer, tuple(question.options))
)
