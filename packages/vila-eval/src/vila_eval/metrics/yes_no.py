"""Yes-or-no benchmarks: POPE's scores, and MME's over pairs of questions."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vila_core.errors import ConfigError, unknown_name
from vila_eval.metric import Measure, Score, Scored, exact, grouped, mean_measures
from vila_eval.metrics.inputs import require_text
from vila_eval.statistics import Estimate, estimate, sum_estimates
from vila_eval.task import Question

YesNo = Literal["yes", "no"]

MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def first_word_yes_no(reply: str) -> YesNo | None:
    """Return "yes" or "no" if that is the first word of `reply`, ignoring case and punctuation, else None."""
    word = re.search(r"[^\W_]+", require_text(reply, "reply"))
    return _yes_no(word[0]) if word else None


def _yes_no(word: str) -> YesNo | None:
    word = word.lower()
    return "yes" if word == "yes" else "no" if word == "no" else None


def _label(text: str) -> YesNo:
    label = _yes_no(require_text(text, "answer").strip().removesuffix("."))
    if label is None:
        raise ConfigError(f"A yes-or-no sample has the answer {text!r}; expected 'yes' or 'no'.")
    return label


def pope_yes_no(reply: str) -> YesNo | None:
    """Return "no" if the first sentence has the word "no" or "not", else "yes"; None for an empty reply.

    "There is no dog." and "It is not there" are "no"; "Nope", "There isn't one" and "unknown" are "yes".

    Source: `evaluate.py` of POPE (AoiDragon/POPE), which cuts at the first full stop and removes commas. It knows only
    "No", "no" and "not" between spaces; here case and the kind of white space do not matter, and an empty reply
    (a failed sample) is not a yes.
    """
    words = require_text(reply, "reply").partition(".")[0].replace(",", "").lower().split()
    if not reply.strip():
        return None
    return "no" if "no" in words or "not" in words else "yes"


@dataclass(frozen=True)
class PopeScores:
    """POPE's scores, in [0, 1]. `yes_ratio` and `parse_failure_rate` are shares of the replies; 0 / 0 counts as 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    parse_failure_rate: float


def pope_scores(predictions: Sequence[str], labels: Sequence[str]) -> PopeScores:
    """Score replies against yes/no labels; "yes" is the positive class.

    accuracy = right / all, precision = TP / (TP + FP), recall = TP / labels that are yes, F1 = 2PR / (P + R), yes-ratio
    = replies that say yes / all. Replies are read by `pope_yes_no`. An empty reply is wrong: a miss if the label is
    yes, but not a false positive. lmms-eval compares the reply's first word, and reports the labels' yes-ratio as the
    model's.

    Source: Li et al. 2023 (arXiv 2305.10355) and `evaluate.py` of AoiDragon/POPE. Raises `ConfigError` for no samples,
    unequal counts, or a label that is neither yes nor no.
    """
    if not labels or len(predictions) != len(labels):
        raise ConfigError(
            f"POPE got {len(predictions)} replies and {len(labels)} labels; expected equally many, at least one."
        )
    pairs = [(pope_yes_no(reply), _label(label)) for reply, label in zip(predictions, labels, strict=True)]
    said_yes = sum(said == "yes" for said, _ in pairs)
    are_yes = sum(label == "yes" for _, label in pairs)
    true_positives = pairs.count(("yes", "yes"))
    return PopeScores(
        accuracy=sum(said == label for said, label in pairs) / len(pairs),
        precision=_ratio(true_positives, said_yes),
        recall=_ratio(true_positives, are_yes),
        f1=_ratio(2 * true_positives, said_yes + are_yes),
        yes_ratio=said_yes / len(pairs),
        parse_failure_rate=sum(said is None for said, _ in pairs) / len(pairs),
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def mme_yes_no(reply: str) -> YesNo | None:
    """Return "yes" or "no" as MME reads `reply`, or None: the whole reply, or what its first four characters contain.

    The reply is lower-cased and stripped, and "." is removed. "y" and "n" count as whole replies. Among the first four
    characters "yes" goes before "no", so "not sure" is a no and "I say yes" is None. Source: `parse_pred_ans` of
    lmms-eval, which equals MME's `calculation.py` except for the one-letter answers and periods.
    """
    reply = require_text(reply, "reply").lower().strip().replace(".", "")
    start = reply[:4]
    if reply == "y" or "yes" in start:
        return "yes"
    return "no" if reply == "n" or "no" in start else None


@dataclass(frozen=True)
class MmeAnswer:
    """One reply. `pair` identifies the image, whose two questions score together (`question_id` in lmms-lab/MME)."""

    category: str
    pair: str
    question: str
    prediction: str
    label: str


@dataclass(frozen=True)
class MmeCategory:
    """`accuracy` over questions, and `accuracy_plus` over pairs with both right, each in [0, 1]."""

    accuracy: float
    accuracy_plus: float

    @property
    def score(self) -> float:
        """MME points, in [0, 200]."""
        return 100 * (self.accuracy + self.accuracy_plus)


@dataclass(frozen=True)
class MmeScores:
    """Scores by category, in MME's order. A category without samples is absent and adds nothing to the sums."""

    categories: dict[str, MmeCategory]

    @property
    def perception(self) -> float:
        """MME points, in [0, 2000] with all ten categories."""
        return sum(self.categories[name].score for name in MME_PERCEPTION if name in self.categories)

    @property
    def cognition(self) -> float:
        """MME points, in [0, 800] with all four categories."""
        return sum(self.categories[name].score for name in MME_COGNITION if name in self.categories)

    @property
    def missing_categories(self) -> tuple[str, ...]:
        """Categories without samples. If there are any, the sums are not comparable with published ones."""
        return tuple(name for name in (*MME_PERCEPTION, *MME_COGNITION) if name not in self.categories)


def mme_scores(answers: Iterable[MmeAnswer]) -> MmeScores:
    """Score MME: 100 * (accuracy + accuracy+) per category, summed over perception and over cognition categories.

    accuracy = right / questions, accuracy+ = pairs with both right / pairs. Replies are read by `mme_yes_no`; one that
    says neither is wrong. Source: Fu et al. 2023 (arXiv 2306.13394), section 2.3.

    Raises `ConfigError` for no answers, an unknown category, a label that is neither yes nor no, or an image without
    exactly two questions (the message names the missing one).
    """
    pairs: dict[tuple[str, str], list[MmeAnswer]] = {}
    for answer in answers:
        if answer.category not in MME_PERCEPTION + MME_COGNITION:
            raise ConfigError(unknown_name("MME category", answer.category, MME_PERCEPTION + MME_COGNITION))
        pairs.setdefault((answer.category, answer.pair), []).append(answer)
    if not pairs:
        raise ConfigError("MME got no answers; expected two for each image.")
    right: dict[str, list[int]] = {}  # category -> number of right answers (0 to 2) of each pair
    for (category, _), questions in pairs.items():
        _check_pair(questions)
        right.setdefault(category, []).append(
            sum(mme_yes_no(answer.prediction) == _label(answer.label) for answer in questions)
        )
    return MmeScores(
        {
            name: MmeCategory(sum(right[name]) / (2 * len(right[name])), right[name].count(2) / len(right[name]))
            for name in (*MME_PERCEPTION, *MME_COGNITION)
            if name in right
        }
    )


def _check_pair(questions: Sequence[MmeAnswer]) -> None:
    if len(questions) == 2:
        return
    first = questions[0]
    where = f"MME image '{first.pair}' of category '{first.category}'"
    if len(questions) > 2:
        raise ConfigError(f"{where} has {len(questions)} questions; expected 2. Is the image's identifier unique?")
    partner = "no" if _label(first.label) == "yes" else "yes"
    raise ConfigError(
        f"{where} has one question, {first.question!r} (answer: {_label(first.label)}); its partner, whose answer is "
        f"'{partner}', is missing. MME scores pairs: choose a --limit that keeps both."
    )


@dataclass(frozen=True)
class PopeMetric:
    """POPE: accuracy (the headline), precision, recall, F1 and the share of yes replies; overall and by category."""

    name: str = "pope"

    def score(self, answer: str, question: Question) -> Score:
        said = pope_yes_no(answer)
        right = float(said == _label(question.answer))
        return Score({"accuracy": right}, parsed=said, unread=None if said else "empty")

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        groups = [(None, list(samples)), *grouped(samples, ("category",)).items()]
        return [measure for group, members in groups for measure in self._measures(members, group)]

    def _measures(self, samples: Sequence[Scored], group: tuple[str, str] | None) -> list[Measure]:
        scores = pope_scores([sample.answer for sample in samples], [sample.question.answer for sample in samples])
        n = len(samples)
        return [
            replace(mean_measures(samples, group_by=())[0], group=group),
            *(
                Measure(name, exact(value, n), group=group)
                for name, value in (("precision", scores.precision), ("recall", scores.recall), ("f1", scores.f1))
            ),
            Measure("yes_ratio", exact(scores.yes_ratio, n), higher_is_better=None, group=group),
        ]


@dataclass(frozen=True)
class MmeMetric:
    """MME: points for perception (the headline), cognition, and each category; see `mme_scores`.

    A question's category is `groups["category"]`; both questions of a pair share their `cluster`. A category's points
    are the mean over its pairs: 200 for a pair with both right, 50 with one right. Sample sizes count pairs, and the
    squared errors of the categories add up. A sum over only some of its categories (a small `--limit`) is not
    comparable with published scores; a sum over none is left out.
    """

    name: str = "mme"

    def score(self, answer: str, question: Question) -> Score:
        said = mme_yes_no(answer)
        return Score(
            {"accuracy": float(said == _label(question.answer))},
            parsed=said,
            unread=None if said else "neither yes nor no",
        )

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        scores = mme_scores(_mme_answer(sample) for sample in samples)
        by_category = {name: _mme_points(samples, name) for name in scores.categories}
        sums = [
            Measure(
                name,
                sum_estimates([by_category[category] for category in categories if category in by_category]),
                unit="points",
            )
            for name, categories in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION))
            if not by_category.keys().isdisjoint(categories)
        ]
        return sums + [
            Measure("score", points, unit="points", group=("category", name)) for name, points in by_category.items()
        ]


def _mme_answer(sample: Scored) -> MmeAnswer:
    question = sample.question
    text = " ".join(part for part in question.prompt if isinstance(part, str))
    return MmeAnswer(question.groups["category"], str(question.cluster), text, sample.answer, question.answer)


def _mme_points(samples: Sequence[Scored], category: str) -> Estimate:
    """Return a category's points: the mean over its pairs of 100 * (share right + whether both are right)."""
    right: dict[str | None, float] = {}
    for sample in samples:
        if sample.question.groups["category"] == category:
            right[sample.question.cluster] = right.get(sample.question.cluster, 0.0) + sample.score.values["accuracy"]
    return estimate([50 * number + 100 * (number == 2) for number in right.values()])


POPE_METRIC = PopeMetric()
MME_METRIC = MmeMetric()
