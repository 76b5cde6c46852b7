"""MMBench's circular evaluation: a question is right only if it is answered right for every rotation of its options.

Liu et al. 2023, arXiv:2307.06281, section 4.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vila_eval.metric import Measure, Score, Scored, mean_measures
from vila_eval.metrics.choices.general import contained_options, extract_letter
from vila_eval.metrics.choices.scoring import letter_score
from vila_eval.metrics.inputs import require_text
from vila_eval.task import Question

ROTATION = 1_000_000
"""The rows of a question have the indices q, q + 1000000, q + 2000000, …: one per rotation of its options."""

_REFUSALS = (
    *("Failed to obtain answer via API", "Sorry, I can't help with images of people yet."),
    *("I can't process this file.", "I'm sorry, but without the image provided", "Cannot determine the answer"),
)
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def extract_mmbench_choice(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter of an answer by the first rule that finds one:

    1. The only letter of an option that is a word, upper case, among the last four words. `.()[],:;!*#{}` are spaces.
    2. What `extract_letter` reads, which also covers "The correct answer is **B**. Here's why: …".
    3. The only option whose text the answer contains, if it is no longer than twice all options together.

    Source: `can_infer` in `vlmeval/utils/matching_util.py` of open-compass/VLMEvalKit, whose third rule also finds
    texts inside words and numbers ("10" in "10:30"). Here they must be whole words.
    """
    if any(refusal in require_text(answer, "answer") for refusal in _REFUSALS):
        return None
    letters = [chr(ord("A") + index) for index in range(len(options))]
    words = answer.translate(_MARKS).split()
    found = set(words).intersection(letters)
    if len(found) == 1 and found.intersection(words[-4:]) and words.index(next(iter(found))) > len(words) - 5:
        return found.pop()
    if letter := extract_letter(answer, options):
        return letter
    if len(answer) > 2 * sum(len(option) for option in options):
        return None
    contained = contained_options(answer, options)
    return contained[0] if len(contained) == 1 else None


@dataclass(frozen=True)
class MmbenchMetric:
    """MMBench: circular accuracy (the headline), overall and by group, and the accuracy of the unrotated rows alone.

    Where `--limit` cuts off some rotations of a question, the remaining ones decide. Letters are read by
    `extract_mmbench_choice`, and an answer that it cannot read is wrong; the benchmark's server asks a language model
    to read those. `Question.fields["index"]` is the row's index.
    """

    name: str = "mmbench"

    def score(self, answer: str, question: Question) -> Score:
        return letter_score(extract_mmbench_choice(answer, question.options), question)

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        rotations: dict[int, list[Scored]] = {}
        for sample in samples:
            rotations.setdefault(sample.question.fields["index"] % ROTATION, []).append(sample)
        overall, *by_group = mean_measures([_all_right(members) for members in rotations.values()])
        unrotated = [sample for sample in samples if sample.question.fields["index"] < ROTATION]
        single = (
            [replace(measure, name="single_pass_accuracy") for measure in mean_measures(unrotated, group_by=())]
            if unrotated
            else []
        )
        return [overall, *single, *by_group]


def _all_right(rotations: Sequence[Scored]) -> Scored:
    lowest = min(sample.score.values["accuracy"] for sample in rotations)
    return replace(rotations[0], score=Score({"accuracy": lowest}))


MMBENCH_METRIC = MmbenchMetric()
