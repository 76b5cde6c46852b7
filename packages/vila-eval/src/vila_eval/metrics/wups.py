"""WUPS (Malinowski and Fritz 2014, arXiv:1410.0210), as NExT-QA uses it: similarity of words of answer and reference.

The similarity is Wu and Palmer's, in WordNet's hierarchy: 2 * depth(nearest common ancestor) / (depth(a) + depth(b)),
for the first meaning of each word. Words and their base forms come from NLTK (`vila-eval[wups]`) and its data.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

from vila_core.errors import unknown_name
from vila_core.plugins.lazy import optional_import
from vila_eval.errors import DataError
from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.inputs import require_answers, require_text
from vila_eval.task import Question

NLTK_DATA = ("wordnet", "punkt_tab", "averaged_perceptron_tagger_eng")
EXACT_KINDS = ("DB", "DC")
"""Yes-or-no and counting questions: right or wrong, without WordNet."""

# NLTK's English stop words of 2018, except "no", "nor" and "not", which matter in NExT-QA's answers.
_STOP_WORDS = """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his
    himself she she's her hers herself it it's its itself they them their theirs themselves what which who whom this
    that that'll these those am is are was were be been being have has had having do does did doing a an the and but
    if or because as until while to from of at for with about into through during again further then here there when
    where why how all any each most other some such only own so than too very s t can will just don don't should
    should've now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't
    haven haven't isn isn't ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't
    weren weren't won won't wouldn wouldn't
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


class Lexicon(Protocol):
    """Word knowledge that WUPS needs."""

    def tokens(self, text: str) -> list[str]:
        """Split a text into words and punctuation marks."""
        ...

    def lemmas(self, text: str) -> list[str]:
        """Return the base forms of a text's tokens, in lower case."""
        ...

    def similarity(self, a: str, b: str) -> float:
        """Return the Wu-Palmer similarity of the first meanings of two words, in [0, 1]; 0 if one is unknown."""
        ...


def content_words(text: str, lexicon: Lexicon) -> str:
    """Return the base forms of a text's words without stop words, joined by spaces."""
    return " ".join(lemma for lemma in lexicon.lemmas(text) if lemma not in STOP_WORDS)


def wups(prediction: str, reference: str, threshold: float, lexicon: Lexicon) -> float:
    """Return the smaller of two products, one per direction, in [0, 1].

    Each product is over the words of one text, of their highest similarity to a word of the other text. Equal words
    have similarity 1; a similarity below `threshold` is divided by ten. Words with no similarity to any word of the
    other text are left out; a text of only such words has product 0. Texts are those of `content_words`.
    Source: `metrics.py` of github.com/doc-doc/NExT-OE (commit 1456716).
    """
    said, expected = lexicon.tokens(prediction), lexicon.tokens(reference)
    return min(_directed(said, expected, threshold, lexicon), _directed(expected, said, threshold, lexicon))


def _directed(words: Sequence[str], others: Sequence[str], threshold: float, lexicon: Lexicon) -> float:
    product, found = 1.0, False
    for word in words:
        best = max((_similarity(word, other, threshold, lexicon) for other in others), default=0.0)
        if best > 0:
            product, found = product * best, True
    return product if found else 0.0


def _similarity(a: str, b: str, threshold: float, lexicon: Lexicon) -> float:
    if a == b:
        return 1.0
    similarity = lexicon.similarity(a, b)
    return similarity if similarity >= threshold else 0.1 * similarity


class NltkLexicon:
    """WordNet through NLTK. Base forms are found as in pywsd's `lemmatize_sentence`, which NExT-OE uses.

    A word is tagged, then looked up in WordNet, or else stemmed.
    Raises `MissingDependencyError` without NLTK, and `DataError` without its data.
    """

    def __init__(self) -> None:
        with optional_import("WUPS", "vila-eval[wups]", "nltk"):
            import nltk  # pyright: ignore[reportMissingImports]
            from nltk.corpus import wordnet  # pyright: ignore[reportMissingImports]
            from nltk.stem import PorterStemmer, WordNetLemmatizer  # pyright: ignore[reportMissingImports]
        self._nltk: Any = nltk
        self._wordnet: Any = wordnet
        self._lemmatizer: Any = WordNetLemmatizer()
        self._stemmer: Any = PorterStemmer()
        try:
            wordnet.ensure_loaded()
            self.lemmas("They see it. It runs.")
        except LookupError:
            raise DataError(
                f"WUPS needs NLTK's data {', '.join(NLTK_DATA)}. Run: python -m nltk.downloader {' '.join(NLTK_DATA)} "
                "(without a network, unpack them from github.com/nltk/nltk_data below ~/nltk_data)."
            ) from None

    def tokens(self, text: str) -> list[str]:
        return list(self._nltk.word_tokenize(text))

    def lemmas(self, text: str) -> list[str]:
        return [self._lemma(word.lower(), _part_of_speech(tag)) for word, tag in self._nltk.pos_tag(self.tokens(text))]

    def similarity(self, a: str, b: str) -> float:
        meanings_of_a, meanings_of_b = self._wordnet.synsets(a), self._wordnet.synsets(b)
        return (meanings_of_a[0].wup_similarity(meanings_of_b[0]) or 0.0) if meanings_of_a and meanings_of_b else 0.0

    def _lemma(self, word: str, part_of_speech: str | None) -> str:
        if part_of_speech is None:
            ((_, tag),) = self._nltk.pos_tag([word])
            part_of_speech = _part_of_speech(tag) or "n"
        for form in (self._lemmatizer.lemmatize(word, part_of_speech), self._stemmer.stem(word)):
            if self._wordnet.synsets(form):
                return str(form)
        return word


def _part_of_speech(tag: str) -> str | None:
    return {"NN": "n", "JJ": "a", "VB": "v", "RB": "r"}.get(tag[:2])


@lru_cache
def lexicon_named(name: Literal["wordnet", "miniature"]) -> Lexicon:
    """Return WordNet, or the small lexicon of NExT-QA's fixture, which needs no installation."""
    if name == "wordnet":
        return NltkLexicon()
    if name != "miniature":
        raise DataError(unknown_name("lexicon", name, ("wordnet", "miniature")))
    from vila_eval.fixtures.lexicon import MiniatureLexicon

    return MiniatureLexicon()


def nextqa_score(answer: str, question: Question) -> Score:
    """Score an open answer: "wups" and "wups_0.9" (thresholds 0 and 0.9), each the highest over the references.

    `Question.answer` is one reference or several, `groups["type"]` NExT-QA's type and `fields["lexicon"]` a name for
    `lexicon_named`. For the types DB and DC the score is 1 if the content words equal those of a reference, else 0. For
    a second reference lmms-eval uses threshold 0 for both values; NExT-OE and this metric do not.
    """
    lexicon = lexicon_named(question.fields["lexicon"])
    said = content_words(require_text(answer, "answer"), lexicon)
    expected = [content_words(reference, lexicon) for reference in require_answers(question.answer)]
    if question.groups["type"] in EXACT_KINDS:
        right = float(said in expected and bool(answer.strip()))  # an empty answer is not a stop word
        return Score({"wups": right, "wups_0.9": right}, parsed=said)
    best = [max(wups(said, reference, threshold, lexicon) for reference in expected) for threshold in (0.0, 0.9)]
    return Score({"wups": best[0], "wups_0.9": best[1]}, parsed=said)


WUPS = MeanMetric("wups", nextqa_score)
"""`nextqa_score`, overall and by group."""
