r"""The letter that an answer to a multiple-choice question stands for: no guessing, None when it cannot be told.

No benchmark's official parser (see `mmmu` for MMMU's), but the forms that models usually answer in, written down.
"""

import re
from collections.abc import Sequence

from vila_core.errors import ConfigError
from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.inputs import require_options, require_text
from vila_eval.task import Question

_EMPHASIS = "*_`\"'“”‘’"
# "B or C", "(B)/(C)", "B, D": two letters are no answer. "C, I think": one is.
_NO_SECOND = r"(?!\W*?(?:\b(?:or|and)\b|[/&,])\s*[\[(]?[A-HJ-Z]\b)"
_ALONE = re.compile(r"[\[(]?([A-Za-z])[\])]?[.:,;!]?")
_ANNOUNCED = re.compile(
    r"(?:(?i:\b(?:answer|option|choice)\b)[*_]*\s*(?:(?i:\bis\b)\s*:?|:|=)?[*_\s\"'“‘]*|\\boxed\{\s*)"
    r"(?:[\[(]([A-Za-z])[\])]|([A-Z])(?![\w'’-])|([a-z])(?=[.)*_}]*[ \t]*(?:\n|$)))" + _NO_SECOND
)
_LEADING = re.compile(r"([A-Z])[*_]*(?:[.):](?=\s|$|[*_])|\s*\n)" + _NO_SECOND)
_BRACKETED = re.compile(r"[\[(]([A-Z])[\])]")
# "A" and "I" before a word are an article and a pronoun, unless a reason follows.
_WORD_FOLLOWS = re.compile(r"[ \t]+(?!(?:because|since|as|for)\b)\w")
_DENIAL = re.compile(r"\b(?:not|neither|nor)\b|n['’]t\b|\bcannot\b")


def extract_letter(answer: str, options: Sequence[str]) -> str | None:
    r"""Return the upper-case letter of the option that `answer` names, or None when it cannot be told.

    `options` are the option texts without their letters, first option ("A") first; an empty text, for an option that is a
    picture, is never matched. White space, quotes and Markdown emphasis around the answer are dropped. A letter beyond the
    last option does not count. Texts are compared case-folded, ignoring spacing, quotes and emphasis at either end, and
    `. , ; : ! ?` at the end. The first rule that finds a letter decides:

    1. The answer is a letter, of either case, with or without brackets and closing punctuation: "B", "b", "(B)", "[B]", "B.", "B)".
    2. The answer is the text of exactly one option: "the red cube." for "The red cube".
    3. The answer announces a letter: "answer", "option" or "choice", then "is", ":", "=" or nothing, then an upper-case letter, or
       one of either case that is in brackets or ends the line: "Answer: B", "The correct answer is (b)", "answer: b", "Option C";
       also "\boxed{B}". The last announcement counts. "A" or "I" followed by a word is a word ("Answer: A man"), unless a reason
       follows ("because", "since", "as", "for"); and one of several letters ("Answer: B or C") is no announcement.
    4. The answer begins with an upper-case letter and ".", ")", ":" or a line break: "B. The cube", "B: the cube". Not
       "B) or C)".
    5. Exactly one upper-case letter is in brackets anywhere: "(B) The cube", "I choose (B)".
    6. The text of exactly one option is in the answer as whole words: "It is the red cube, I think". A text inside a longer
       one that is there too ("red" in "red cube") does not count by itself; nor does anything in
       an answer that denies, with "not", "n't", "cannot", "neither" or "nor" outside the texts.

    Raises: ConfigError when `answer` is not text, or `options` are not 1 to 26 texts.
    """
    text = require_text(answer, "answer").strip().strip(_EMPHASIS).strip()
    words = [_words(option) for option in require_options(options)]
    letters = "".join(chr(ord("A") + i) for i in range(len(words)))

    if (alone := _ALONE.fullmatch(text)) and (letter := alone[1].upper()) in letters:
        return letter
    exact = [letter for letter, option in zip(letters, words, strict=True) if option and option == _words(text)]
    if exact:
        return _only(exact)
    announced = [letter for match in _ANNOUNCED.finditer(text) if (letter := _announced_letter(match, letters))]
    if announced:
        return announced[-1]
    if (leading := _LEADING.match(text)) and leading[1] in letters:
        return leading[1]
    bracketed = {letter for letter in _BRACKETED.findall(text) if letter in letters}
    if bracketed:
        return _only(sorted(bracketed))
    return _only(_letters_of_contained_texts(_words(text), letters, words))


def extract_llava_letter(answer: str) -> str | None:
    """Return the letter, upper case, of an answer that is only a letter ("b") or begins "B."; None otherwise. Outer white space goes.

    Source: ScienceQA in lmms-eval (`sqa_process_results`), which takes it from LLaVA: "b. a cat" and "(B)" are no answers.
    """
    text = require_text(answer, "answer").strip()
    if len(text) == 1 and text.isalpha():
        return text.upper()
    return text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else None


def extract_first_character(answer: str) -> str | None:
    """Return the first character, upper case, or None for an empty answer. "Both" is then "B".

    Source: SEED-Bench in lmms-eval (`seed_process_result`).
    """
    return require_text(answer, "answer").strip()[:1].upper() or None


def _announced_letter(match: re.Match[str], letters: str) -> str | None:
    letter = match[1] or match[2] or match[3]
    is_a_word = match[2] in ("A", "I") and _WORD_FOLLOWS.match(match.string, match.end())
    return letter.upper() if letter.upper() in letters and not is_a_word else None


def _letters_of_contained_texts(answer: str, letters: str, options: list[str]) -> list[str]:
    found: list[str] = []
    # Longest first, and what is found is blanked: a shorter text must stand somewhere by itself.
    for option in sorted({option for option in options if option}, key=lambda option: (-len(option), option)):
        # Not "5" in "5.2", "-5" or "5%", nor "red" in "red-hot".
        whole = re.compile(rf"(?<![\w+-])(?<!\w[.,]){re.escape(option)}(?!\w|[.,]\d|-\w|[%+])")
        if whole.search(answer):
            found += [letter for letter, text in zip(letters, options, strict=True) if text == option]
            answer = whole.sub("\0", answer)
    return [] if _DENIAL.search(answer) else found


def _words(text: str) -> str:
    return " ".join(text.casefold().split()).strip(_EMPHASIS).rstrip(".,;:!?" + _EMPHASIS)


def _only(letters: list[str]) -> str | None:
    return letters[0] if len(letters) == 1 else None


def letter_score(said: str | None, question: Question) -> Score:
    """Return the score of the letter that an answer was read as. Raises `ConfigError` if `question.answer` is no letter of an option."""
    letters = [chr(ord("A") + index) for index in range(len(require_options(question.options)))]
    if question.answer not in letters:
        raise ConfigError(
            f"Question '{question.id}' has {len(letters)} options and the answer {question.answer!r}. "
            f"Expected one of the letters {', '.join(letters)}."
        )
    read = said if said in letters else None
    return Score(
        {"accuracy": float(read == question.answer)}, parsed=read, unread=None if read else "no single option named"
    )


MULTIPLE_CHOICE = MeanMetric(
    "multiple_choice", lambda answer, question: letter_score(extract_letter(answer, question.options), question)
)
"""Accuracy of the letters that `extract_letter` reads, for questions with `options` and a letter as the answer."""
LLAVA_LETTER = MeanMetric("llava_letter", lambda answer, question: letter_score(extract_llava_letter(answer), question))
"""The same, read by `extract_llava_letter`; for ScienceQA."""
FIRST_CHARACTER = MeanMetric(
    "first_character", lambda answer, question: letter_score(extract_first_character(answer), question)
)
"""The same, read by `extract_first_character`; for SEED-Bench."""
