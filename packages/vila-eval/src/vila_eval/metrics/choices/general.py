r"""The general reader, for V* and new benchmarks: it reads the forms in which models usually answer, and never guesses.

It is not any benchmark's official parser.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vila_eval.metrics.choices import letter_grammar as grammar
from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_options, require_text

LONGEST = 4_000
"""Of a longer answer, the first and the last half of this many characters are read."""

_EMPHASIS = "*_`\"'“”‘’«»"
_THOUGHT = re.compile(r"</\s*think(?:ing)?\s*>|◁/think▷", re.IGNORECASE)
_UNFINISHED_THOUGHT = re.compile(r"<\s*think(?:ing)?\s*>|◁think▷", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<\s*answer\s*>|<\|begin_of_box\|>", re.IGNORECASE)
_ANSWER_END = re.compile(r"<\s*/\s*answer\s*>|<\|end_of_box\|>", re.IGNORECASE)
_ANSWER_FIELD = re.compile(
    r"""["'](?:final|correct|predicted|selected)?[ _]?(?:answer|choice|option|letter|prediction)["']\s*:\s*"""
    r"""(["'])((?:(?!\1)[^{}]){1,200})\1""",
    re.IGNORECASE,
)
"""The answer in JSON or a Python dictionary."""
_CONTROL_TOKEN = re.compile(r"<\|[\w-]{1,30}\|>|</?s>")
_LATEX_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|rm|it)?|boldsymbol|rm|bf)\s*\{([^{}]{0,200})\}")
_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{([^{}]{0,200})\}")
_ALONE = re.compile(
    r"[\[({【「『\s]*([A-Za-z])[\])}】」』\s]*[.:,;!?。、]?\s*(?:[\[({]?(?<!\w)\1[\])}]?[.,;]?\s*)*", re.IGNORECASE
)
_MENTION = re.compile(r"(?<![A-Za-z0-9'’_.+\\-])([A-Za-z])(?![A-Za-z0-9'’_+]|-[A-Za-z])(?!\.[A-Z]\b)")
_LEADING_END = re.compile(
    r"[\])}】」』>\"”’']*\s*(?:[.):,;\-–—。、:](?=\s|$|[A-Z]?[a-z]|[^\x00-\x7f])|\n|\(|$|"
    r"(?:rather|instead|not|and\s+not|over)\b)"
)
_EAST_ASIAN = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_WORD = "[^\\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_DENIAL = re.compile(r"\b(?:not|neither|nor)\b|n['’]t\b|\bcannot\b|\b(?:no|without)\s+(?:\w+\s+)?\0")


@dataclass(frozen=True)
class _Mention:
    """A letter in an answer: what it is, where, and what the words around it say."""

    letter: str
    start: int
    end: int
    quoted: bool  # its own option's text follows
    denied: bool
    announced: bool
    as_option: bool  # "option B"
    bracketed: bool
    leading: bool
    is_label: bool  # "B: …" or "B) …"
    shared: bool = False  # listed with another letter: "B or C"


def extract_letter(answer: str, options: Sequence[str]) -> str | None:
    r"""Return the upper-case letter of the option that `answer` names, or None if it does not name exactly one.

    `options` are the option texts without their letters, option A first. An empty text, for an option that is an image,
    never matches. Full-width forms count as ASCII. Thinking (`<think>…</think>`) is skipped. If there is an
    `<answer>…</answer>` or a `\boxed{…}`, the last one is the answer. The first rule that finds a letter decides:

    1. The answer is a letter, in either case, with or without brackets and closing punctuation: "B", "b", "(B)", "B。".
    2. The answer is the text of exactly one option, ignoring case, spacing, quotes and closing punctuation.
    3. The last letter that is announced: "The answer is B", "I choose (b)", "It's B", "B is correct", "答案是B",
       "答えはB", "정답은 B", "not A but B", or a line with nothing else. Letters that are denied ("not A",
       "A is wrong", "rather than A") do not count, here and below. Two at once ("B or C") make the answer unread.
    4. The answer begins with an upper-case letter and punctuation or a line break: "B. The cube", "B, because".
    5. Exactly one letter is named as an option: "Option C shows it".
    6. Exactly one upper-case letter is in brackets anywhere: "The cube (B)".
    7. The answer contains the text of exactly one option as whole words: "It is the red cube, I think". A text inside a
       longer option text ("red" in "red cube") does not count by itself. Nothing counts in an answer that contains
       "not", "n't", "cannot", "neither" or "nor" outside the option texts.

    "A" and "I" before another word are an article and a pronoun, unless a verb or a reason follows ("A because …").
    A letter beyond the last option does not count.

    Raises: ConfigError when `answer` is not text, or `options` are not 1 to 26 texts.
    """
    text = require_text(answer, "answer")
    texts = require_options(options)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}\n…\n{text[-LONGEST // 2 :]}"
    return _read(_final_answer(text), [_words(option) for option in texts])


def _final_answer(text: str) -> str:
    """Return the part of the answer that counts: after the thinking, in the last answer tag or box."""
    text = unicodedata.normalize("NFKC", _THOUGHT.split(text)[-1])
    text = _UNFINISHED_THOUGHT.split(text)[0]
    tagged = _ANSWER_TAG.split(text)
    if len(tagged) > 1:
        text = _ANSWER_END.split(tagged[-1])[0]
    text = _CONTROL_TOKEN.sub(" ", text)
    if fields := _ANSWER_FIELD.findall(text):
        text = fields[-1][1]
    text = re.sub(r"\\[()\[\]]|^#+|(?<=\n)#+", "", _LATEX_TEXT.sub(r"\1", text))
    boxed = _BOXED.findall(text)
    return (boxed[-1] if boxed else text).strip().strip(_EMPHASIS).strip()


def _read(text: str, options: list[str]) -> str | None:
    letters = "".join(chr(ord("A") + i) for i in range(len(options)))
    if (alone := _ALONE.fullmatch(text)) and (letter := alone[1].upper()) in letters:
        return letter
    exact = [letter for letter, option in zip(letters, options, strict=True) if option and option == _words(text)]
    if exact:
        return _only(exact)
    mentions = _mentions(re.sub(r"[*`]+|\$(?=[(\[]?[A-Z][)\]]?\$)|(?<=[A-Z)])\$", "", text).strip(), letters, options)
    if announced := [mention for mention in mentions if mention.announced and not mention.denied]:
        return None if announced[-1].shared else announced[-1].letter
    open_mentions = [mention for mention in mentions if not mention.denied and not mention.shared]
    labels = [mention.letter for mention in open_mentions if mention.is_label]
    is_list = labels[:2] == ["A", "B"] or len({mention.letter for mention in open_mentions if mention.quoted}) > 1
    if open_mentions and open_mentions[0].leading and not is_list:
        return open_mentions[0].letter
    if as_option := {mention.letter for mention in mentions if mention.as_option and not mention.denied}:
        return _only(sorted(as_option))
    if bracketed := {mention.letter for mention in mentions if mention.bracketed and not mention.denied}:
        return _only(sorted(bracketed))
    found, rest = _contained(_words(text), letters, options)
    return None if _DENIAL.search(rest) else _only(found)


def _mentions(text: str, letters: str, options: list[str]) -> list[_Mention]:
    mentions: list[_Mention] = []
    for match in _MENTION.finditer(text):
        if match[1].upper() in letters:
            mention = _mention(text, match, options[letters.index(match[1].upper())], mentions)
            if mention is not None:
                mentions.append(mention)
    return _with_lists(text, mentions)


def _mention(text: str, match: re.Match[str], option: str, earlier: list[_Mention]) -> _Mention | None:
    """Return what the words around a single letter say of it, or None if it is a word ("a", "I") and no letter."""
    before = text[max(0, match.start() - grammar.WINDOW) : match.start()]
    after = text[match.end() : match.end() + grammar.WINDOW]
    quoted = bool(option) and _words(text[match.end() : match.end() + len(option) + 20].lstrip(" .):,-–—]")).startswith(
        option
    )
    announces = grammar.ANNOUNCED_BEFORE.search(before) is not None
    as_option = grammar.OPTION_BEFORE.search(before) is not None
    bracketed = before[-1:] in ("(", "[") and after[:1] in (")", "]")
    ends_line = re.match(r"[\])}.\"'”’]*[ \t]*(?:\n|$)", after) is not None
    starts = not before.strip(" \t([{\"'“‘「『【<")
    if match[1].islower():
        is_letter = (announces or as_option) and (bracketed or ends_line or (as_option and match[1] != "a"))
        if not is_letter and not (starts and quoted and after[:1] in (".", ")", ":")):
            return None
    elif match[1] in "AI" and not (bracketed or quoted or _follows_noun(before)) and _is_word(after):
        return None
    denied = grammar.DENIED_BEFORE.search(before) is not None or (
        not quoted and grammar.DENIED_AFTER.match(after) is not None
    )
    contrast = bool(earlier) and earlier[-1].denied and grammar.CONTRAST_BEFORE.search(before) is not None
    alone = ends_line and re.search(r"(?:^|[\n.!?。;])[ \t]*[\[({\"'“‘]*$", before) is not None
    return _Mention(
        letter=match[1].upper(),
        start=match.start(),
        end=match.end(),
        quoted=quoted,
        denied=denied,
        announced=announces or contrast or alone or grammar.ANNOUNCED_AFTER.match(after) is not None,
        as_option=as_option,
        bracketed=bracketed,
        leading=starts
        and match.start() < grammar.WINDOW
        and _LEADING_END.match(after[1:] if bracketed else after) is not None,
        is_label=re.match(r"[:)][ \t]*\w", after) is not None,
    )


def _is_word(after: str) -> bool:
    """Return whether "A" or "I" is an article or a pronoun, judging by what follows."""
    return re.match(r"[ \t]+\w", after) is not None and grammar.REASON.match(after) is None


def _follows_noun(before: str) -> bool:
    """Return whether "option", "choice" or "letter" comes directly before: what follows is a letter, not an article."""
    return re.search(r"\b(?:option|choice|letter)\s*$", before, re.IGNORECASE) is not None


def _with_lists(text: str, mentions: list[_Mention]) -> list[_Mention]:
    """Mark letters that are listed together ("B or C"); a denial of the first denies all."""
    result = list(mentions)
    for index in range(1, len(result)):
        first, second = result[index - 1], result[index]
        between = text[first.end : second.start]
        if first.bracketed and second.bracketed and not between.strip("()[] "):
            between = ")/("
        joined = grammar.JOINED.fullmatch(between[: grammar.WINDOW])
        if joined is None or first.letter == second.letter or first.quoted:
            continue
        loose = joined["mark"].strip() in ("", ",", ";")
        if first.denied and "\n" in joined["mark"]:  # "Not A.\nB"
            continue
        if loose and not grammar.ENDS_LIST.match(text[second.end : second.end + grammar.WINDOW]):
            continue
        if first.denied and not loose:
            result[index] = replace(second, denied=True)
        elif not second.denied or not loose:
            announced = first.announced or second.announced
            result[index - 1] = replace(first, shared=True, announced=announced, denied=second.denied)
            result[index] = replace(second, shared=True, announced=announced)
    return result


def contained_options(answer: str, options: Sequence[str]) -> list[str]:
    """Return the letters of the options whose texts `answer` contains as whole words, outside longer texts."""
    texts = [_words(option) for option in options]
    return _contained(_words(answer), "".join(chr(ord("A") + i) for i in range(len(texts))), texts)[0]


def _contained(answer: str, letters: str, options: list[str]) -> tuple[list[str], str]:
    """Return the letters of the contained texts, and the answer without these texts."""
    found: list[str] = []
    # Longest first, blanking each match, so that a shorter text must also occur outside the longer ones.
    for option in sorted({option for option in options if option}, key=lambda option: (-len(option), option)):
        # Not "5" in "5.2", "5:30", "-5" or "5%", nor "red" in "red-hot". Chinese and Japanese have no spaces.
        before = "" if _EAST_ASIAN.match(option) else rf"(?<!{_WORD})(?<![+-])(?<!\w[.,:])"
        after = "" if _EAST_ASIAN.match(option[-1]) else rf"(?!{_WORD}|[.,:]\d|-\w|[%+])"
        whole = re.compile(before + re.escape(option) + after)
        if whole.search(answer):
            found += [letter for letter, text in zip(letters, options, strict=True) if text == option]
            answer = whole.sub("\0", answer)
    return found, answer


def _words(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(_EMPHASIS).rstrip(".,;:!?。" + _EMPHASIS)


def _only(letters: list[str]) -> str | None:
    return letters[0] if len(letters) == 1 else None


MULTIPLE_CHOICE = letter_metric("multiple_choice", lambda answer, question: extract_letter(answer, question.options))
