"""COCO's caption scores: BLEU-1 to 4, METEOR, ROUGE-L, CIDEr, through pycocoevalcap (`vila-eval[captions]`) and Java.

That code defines the scores: Penn Treebank tokens (lower case, no punctuation), corpus BLEU with the closest reference
length, METEOR 1.5, ROUGE-L with beta 1.2, and CIDEr-D with document frequencies from the references of the corpus.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vila_core.errors import ConfigError
from vila_core.plugins.lazy import optional_import
from vila_eval.metric import Measure, Score, Scored, exact
from vila_eval.metrics.inputs import require_answers, require_text
from vila_eval.statistics import estimate
from vila_eval.task import Question

MEASURES = ("bleu_4", "bleu_3", "bleu_2", "bleu_1", "meteor", "rouge_l", "cider")
_EXTRA = "vila-eval[captions]"


def tokenize(texts: Sequence[str]) -> list[str]:
    """Return the tokens of each text joined by spaces, as Stanford's tokenizer gives them, in one run of Java.

    Characters outside ASCII are first replaced by spaces, as in lmms-eval.
    Raises `MissingDependencyError` without pycocoevalcap or Java.
    """
    # One non-empty line per text: the tokenizer returns lines.
    cleaned = [" ".join("".join(letter if letter.isascii() else " " for letter in text).split()) for text in texts]
    asked = {index: [{"caption": text}] for index, text in enumerate(cleaned) if text}
    tokenizer = _coco().PTBTokenizer()
    _require_java("Splitting captions into words")
    tokens = tokenizer.tokenize(asked) if asked else {}
    if len(tokens) < len(asked):
        raise ConfigError(f"Java's tokenizer gave {len(tokens)} of {len(asked)} captions. Does `java -version` work?")
    return [tokens[index][0] if index in tokens else "" for index in range(len(texts))]


class Corpus(NamedTuple):
    """Tokenized captions that are scored together, one candidate and at least one reference per sample."""

    candidates: Sequence[str]
    references: Sequence[Sequence[str]]


def score_corpora(corpora: Sequence[Corpus], measures: Sequence[str] = MEASURES) -> dict[str, list[float]]:
    """Return each measure of each corpus: BLEU, METEOR and ROUGE-L in [0, 1], CIDEr in [0, 10].

    Only "meteor" needs Java.
    Raises `MissingDependencyError` without pycocoevalcap; `ConfigError` without Java, or if a corpus is empty or has
    unequal counts.
    """
    for candidates, references in corpora:
        if not candidates or len(candidates) != len(references):
            raise ConfigError(
                f"Got {len(candidates)} captions and references for {len(references)}. Expected equally many, at "
                "least one."
            )
    scores: dict[str, list[float]] = {}
    if any(name.startswith("bleu") for name in measures):
        bleus = [_compute(_coco().Bleu(4), corpus, verbose=0) for corpus in corpora]
        scores |= {f"bleu_{order}": [bleu[order - 1] for bleu in bleus] for order in (1, 2, 3, 4)}
    if "rouge_l" in measures:
        scores["rouge_l"] = [_compute(_coco().Rouge(), corpus) for corpus in corpora]
    if "cider" in measures:
        scores["cider"] = [_compute(_coco().Cider(), corpus) for corpus in corpora]
    if "meteor" in measures:
        _require_java("METEOR")
        scorer = _coco().Meteor()  # One Java process, since each takes seconds to start.
        # METEOR's protocol does not allow an empty caption; a full stop matches no word.
        spoken = [Corpus([text or "." for text in candidates], references) for candidates, references in corpora]
        scores["meteor"] = [_compute(scorer, corpus) for corpus in spoken]
    return {name: [float(score) for score in scores[name]] for name in measures}


def _compute(scorer: Any, corpus: Corpus, **options: int) -> Any:
    given = {index: [text] for index, text in enumerate(corpus.candidates)}
    return scorer.compute_score(
        {index: list(texts) for index, texts in enumerate(corpus.references)}, given, **options
    )[0]


def _coco() -> Any:
    with optional_import("Scoring captions", _EXTRA, "pycocoevalcap"):
        from pycocoevalcap import eval as coco  # pyright: ignore[reportMissingImports]
    return coco


def _require_java(needed_for: str) -> None:
    if shutil.which("java") is None:
        raise ConfigError(f"{needed_for} needs Java, but 'java' was not found. Install a Java runtime, 8 or newer.")


@dataclass(frozen=True)
class CaptionMetric:
    """COCO's measures, times 100, of all captions as one corpus. `Question.answer` is one reference or several.

    A single caption has no score, since document frequencies and lengths are those of its corpus.

    Attributes:
        name: name of the metric.
        measures: the measures to report, the headline first.
        per_cluster: score each `Question.cluster` as its own corpus and take the mean, as lmms-eval does for YouCook2.
    """

    name: str
    measures: tuple[str, ...] = MEASURES
    per_cluster: bool = False

    def score(self, answer: str, question: Question) -> Score:
        require_text(answer, "caption")
        require_answers(question.answer)
        return Score({})

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        references = [require_answers(sample.question.answer) for sample in samples]
        tokens = iter(
            tokenize([sample.answer for sample in samples] + [text for texts in references for text in texts])
        )
        candidates = [next(tokens) for _ in samples]
        expected = [[next(tokens) for _ in texts] for texts in references]
        members: dict[str | None, list[int]] = {}
        for index, sample in enumerate(samples):
            members.setdefault(sample.question.cluster if self.per_cluster else None, []).append(index)
        corpora = [
            Corpus([candidates[index] for index in corpus], [expected[index] for index in corpus])
            for corpus in members.values()
        ]
        scores = {
            name: [100 * score for score in values] for name, values in score_corpora(corpora, self.measures).items()
        }
        return [
            Measure(
                name,
                estimate(scores[name]) if self.per_cluster else exact(scores[name][0], len(samples)),
                unit="points",
            )
            for name in self.measures
        ]


CAPTIONS = CaptionMetric("captions")
"""For any benchmark whose answers are sentences."""
