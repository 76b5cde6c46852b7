"""MMMU-Pro (Yue et al. 2024, arXiv:2409.02813): the letter after the last "Answer:", else by laxer rules than MMMU's.

Source: `parse_multi_choice_response` in `mmmu-pro/evaluate.py` of MMMU-Benchmark/MMMU, except that an answer without a
letter is wrong. The script draws a random letter there.
"""

from vila_eval.metrics.choices.parsing import last_bracketed, last_found, strip_and_pad
from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_text


def extract_mmmu_pro_choice(answer: str, options: tuple[str, ...]) -> str | None:
    """Return the chosen letter by the first rule that finds one:

    1. The only capital that is the letter of an option, even inside a word, after the last "Answer:".
    2. The letter that comes last as "(B)", in the answer after `strip_and_pad`.
    3. A letter before a space, or else before a full stop, even inside a word. Of several, the one that comes last as
       " B ", or the first if none does.
    4. In an answer of more than five words, the option whose text comes last, ignoring case.
    """
    letters = "".join(chr(ord("A") + index) for index in range(len(options)))
    _, announced, tail = require_text(answer, "answer").rpartition("Answer:")
    if announced and len(found := [letter for letter in letters if letter in tail]) == 1:
        return found[0]
    text = strip_and_pad(answer)
    if bracketed := last_bracketed(text, letters):
        return bracketed
    for mark in " .":
        if found := [letter for letter in letters if f"{letter}{mark}" in text]:
            return found[0] if len(found) == 1 else max(found, key=lambda letter: text.rfind(f" {letter} "))
    if len(text.split()) <= 5:
        return None
    return last_found(text.lower(), {letter: option.lower() for letter, option in zip(letters, options, strict=True)})


MMMU_PRO_METRIC = letter_metric(
    "mmmu_pro", lambda answer, question: extract_mmmu_pro_choice(answer, tuple(question.options))
)
