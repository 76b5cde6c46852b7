r"""The general reader, for V* and new benchmarks: it reads the forms in which models usually answer, and never guesses.

It is not any benchmark's official parser.
"""

import re
from collections.abc import Sequence

from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_options, require_text

_EMPHASIS = "*_`\"'“”‘’"
# "B or C", "(B)/(C)" and "B, D" name two options. "C, I think" names one.
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
    r"""Return the upper-case letter of the option that `answer` names, or None if it does not name exactly one.

    `options` are the option texts without their letters, option A first. An empty text, for an option that is an image,
    never matches. White space, quotes and Markdown emphasis around the answer are ignored. A letter beyond the last
    option does not count. Texts are compared ignoring case, spacing, quotes and emphasis at either end, and
    `. , ; : ! ?` at the end. The first rule that finds a letter decides:

    1. The answer is a letter, in either case, with or without brackets and closing punctuation: "B", "b", "(B)", "[B]",
       "B.", "B)".
    2. The answer is the text of exactly one option: "the red cube." for "The red cube".
    3. The answer announces a letter: "answer", "option" or "choice", then "is", ":", "=" or nothing, then an upper-case
       letter, or one in either case that is in brackets or ends the line: "Answer: B", "The correct answer is (b)",
       "answer: b", "Option C"; also "\boxed{B}". The last announcement counts. "A" or "I" before another word is itself
       a word ("Answer: A man"), unless a reason follows ("because", "since", "as", "for"). Several letters
       ("Answer: B or C") are not an announcement.
    4. The answer begins with an upper-case letter and ".", ")", ":" or a line break: "B. The cube", "B: the cube". Not
       "B) or C)".
    5. Exactly one upper-case letter is in brackets anywhere: "(B) The cube", "I choose (B)".
    6. The answer contains the text of exactly one option as whole words: "It is the red cube, I think". A text inside a
       longer option text ("red" in "red cube") does not count by itself. Nothing counts in an answer that contains
       "not", "n't", "cannot", "neither" or "nor" outside the option texts.

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


def _announced_letter(match: re.Match[str], letters: str) -> str | None:
    letter = match[1] or match[2] or match[3]
    is_a_word = match[2] in ("A", "I") and _WORD_FOLLOWS.match(match.string, match.end())
    return letter.upper() if letter.upper() in letters and not is_a_word else None


def _letters_of_contained_texts(answer: str, letters: str, options: list[str]) -> list[str]:
    found: list[str] = []
    # Longest first, blanking each match, so that a shorter text must also occur outside the longer ones.
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


MULTIPLE_CHOICE = letter_metric("multiple_choice", lambda answer, question: extract_letter(answer, question.options))
