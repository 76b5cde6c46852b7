"""Answers as models write them, scored as by each benchmark's own script.

The expected values were computed with the scripts that are named here, not with this package.
"""

from collections.abc import Callable

import pytest

from vila_eval.metric import Score
from vila_eval.metrics.anls import ANLS
from vila_eval.metrics.choices.ai2d import LEADING_LETTER
from vila_eval.metrics.choices.lmms_mcq import score_lmms_choice
from vila_eval.metrics.choices.longvideobench import LONGVIDEOBENCH_CHOICE
from vila_eval.metrics.choices.mathvista import MATHVISTA_METRIC
from vila_eval.metrics.choices.mmbench import MMBENCH_METRIC
from vila_eval.metrics.choices.mmmu import MMMU_METRIC
from vila_eval.metrics.choices.mmmu_pro import MMMU_PRO_METRIC
from vila_eval.metrics.choices.mvbench import score_mvbench
from vila_eval.metrics.choices.nextqa import NEXTQA_CHOICE
from vila_eval.metrics.choices.perceptiontest import PERCEPTIONTEST_CHOICE
from vila_eval.metrics.choices.realworldqa import FLEXIBLE_EXTRACT
from vila_eval.metrics.choices.scienceqa import LLAVA_LETTER
from vila_eval.metrics.choices.seedbench import FIRST_CHARACTER
from vila_eval.metrics.choices.videomme import VIDEO_MME_METRIC
from vila_eval.metrics.choices.vila import VILA_CHOICE
from vila_eval.metrics.exact_match import NORMALIZED_EXACT_MATCH
from vila_eval.metrics.ocrbench import OCRBENCH_METRIC
from vila_eval.metrics.relaxed_accuracy import RELAXED_ACCURACY
from vila_eval.metrics.vqa import EVALAI_VQA_ACCURACY, VQA_ACCURACY
from vila_eval.metrics.yes_no import MME_METRIC, POPE_METRIC
from vila_eval.task import Question

Scoring = Callable[[str, Question], Score]

OPTIONS = ("A red ball", "The blue cube", "a green cone", "Nothing")
READERS: dict[str, Scoring] = {
    # mmmu/utils/eval_utils.py of MMMU-Benchmark/MMMU; where it draws a letter, there is none here ("-")
    "MMMU": MMMU_METRIC.score,
    # mmmu-pro/evaluate.py of MMMU-Benchmark/MMMU; likewise
    "MMMU-Pro": MMMU_PRO_METRIC.score,
    # lmms_eval/tasks/nextqa/utils.py of EvolvingLMMs-Lab/lmms-eval (0.3.0 and 0.7.3 agree); likewise
    "NExT-QA": NEXTQA_CHOICE.score,
    # llava/eval/mmmu_utils/eval_utils.py of NVlabs/VILA, for EgoSchema and CinePile; likewise
    "EgoSchema": VILA_CHOICE.score,
    # lmms_eval/tasks/longvideobench/utils.py of EvolvingLMMs-Lab/lmms-eval (0.3.0 and 0.7.3 agree); likewise
    "LongVideoBench": LONGVIDEOBENCH_CHOICE.score,
    # eval_your_results.py of Video-MME, which is extract_characters_regex of lmms-eval 0.3.0
    "Video-MME": VIDEO_MME_METRIC.score,
    # lmms_eval/tasks/_task_utils/mcq_extract.py of lmms-eval 0.7.3
    "MLVU": score_lmms_choice,
    # mcq_acc in lmms_eval/tasks/mvbench/utils.py of lmms-eval (0.3.0 and 0.7.3 agree)
    "MVBench": score_mvbench,
    # lmms_eval/tasks/perceptiontest/val/utils.py of lmms-eval (0.3.0 and 0.7.3 agree)
    "Perception Test": PERCEPTIONTEST_CHOICE.score,
    # lmms_eval/tasks/scienceqa/utils.py of lmms-eval 0.7.3, then llava/eval/eval_science_qa.py of haotian-liu/LLaVA
    "ScienceQA": LLAVA_LETTER.score,
    # lmms_eval/tasks/seedbench/utils.py of lmms-eval (0.3.0 and 0.7.3 agree)
    "SEED-Bench": FIRST_CHARACTER.score,
    # lmms_eval/tasks/ai2d/utils.py of lmms-eval (0.3.0 and 0.7.3 agree)
    "AI2D": LEADING_LETTER.score,
    # can_infer in vlmeval/utils/matching_util.py of open-compass/VLMEvalKit. Small letters: it asks a language model,
    # and `extract_letter` reads the answer here
    "MMBench": MMBENCH_METRIC.score,
}
# One column per reader, in the order of READERS.
LETTERS = [
    ("B", "B B B B B B B B B B B B B"),
    ("b", "- - - - - - - B - B B B b"),
    ("B.", "B B B B B B B B B B B B B"),
    ("(B)", "B B B B B B B B B - - B B"),
    ("(b)", "- - - - - - - B - - - B b"),
    ("B)", "- - - - B B B B B - B B B"),
    ("**B**.", "- - - - B B B B B - - B B"),
    ("B. The blue cube", "- B B - B B B B B B B B B"),
    ("B: The blue cube", "- - - - B B B B B - B - B"),
    ("B) The blue cube", "- - - - B B B B B - B - B"),
    ("(B) The blue cube.", "B B B B B B B B B - - - B"),
    ("The blue cube", "- - - - - - - - - - - - B"),
    ("The blue cube.", "- - - - - - - - - - - - B"),
    ("It is the blue cube that I see", "B B B - - - - - - - - - B"),
    ("Option B", "B B B B B B B B B - - - B"),
    ("option b", "- - - - - - - B - - - - b"),
    ("Answer: B", "B B B B A A B B B - A - B"),
    ("Answer: B.", "B B B B A A B B B - A - B"),
    ("The answer is B.", "B B B B B B B B B B - - B"),
    ("The answer is (B).", "B B B B B B B B B - - - B"),
    ("The answer is B because A is wrong.", "A A A A B B A B B B - - B"),
    ("The answer is (B) because A is wrong", "B B B B B B A B B - - - b"),
    ("B is correct.", "B B B B B B B B B - B - B"),
    ("It's B.", "B B B B B B B B B - - - B"),
    ("I choose B", "B B B B B B B B B - - - B"),
    ("Best option: (B) The blue cube", "B B B B B B B B B - B - B"),
    ("B and C", "C C C C B B B B B - B - -"),
    ("A or B", "B B B B A A A A A - A - -"),
    ("Not A", "A A A A A A A A A - - - A"),
    ("A man opens the door", "A A A A A A A A A - A - -"),
    ("\\boxed{B}", "- - - - B B B B B - - - B"),
    ('{"answer": "B"}', "- - - - B B B B B - - - b"),
    ("<think>A is wrong.</think>B", "- A A - A A B A A - - - b"),
    ("B\n\nOption A: wrong.", "- - - - B B B B B - B - b"),
    ("答案是B", "- B B - B B B - - - - - b"),
    ("（B）", "- - - - B B B B B - - - b"),
    ("E", "- - - - - - - - - - - - -"),
    ("Dog", "- - - - D D D - - - D - -"),
    ("I don't know", "- - - - - - - - - - - - -"),
    ("Sorry, I can't help with images of people yet.", "- - - - - - - - - - - - -"),
    ("", "- - - - - - - - - - - - -"),
]
VIDEO_MME_GROUPS = {
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Law",
    "task_type": "Counting Problem",
}


def right_letters(score: Scoring, answer: str) -> str:
    """The letters that would be right as the reference: one at most."""
    questions = [Question("validation_Art_1", [], letter, OPTIONS, VIDEO_MME_GROUPS) for letter in "ABCD"]
    return "".join(question.answer for question in questions if next(iter(score(answer, question).values.values())))


@pytest.mark.parametrize(("answer", "letters"), LETTERS, ids=[repr(answer[:40]) for answer, _ in LETTERS])
def test_letters_are_read_as_by_the_published_scripts(answer: str, letters: str) -> None:
    found = {name: right_letters(score, answer) or "-" for name, score in READERS.items()}
    assert found == dict(zip(READERS, letters.upper().split(), strict=True))


TEXTS: dict[str, Scoring] = {
    # lmms_eval/tasks/chartqa/utils.py of EvolvingLMMs-Lab/lmms-eval, from QwenLM/Qwen-VL
    "ChartQA": RELAXED_ACCURACY.score,
    # exact_match in lmms_eval/api/metrics.py of lmms-eval, ignoring case and punctuation
    "GQA": NORMALIZED_EXACT_MATCH.score,
    # lmms_eval/tasks/textvqa/utils.py and _task_utils/vqa_eval_metric.py of lmms-eval, from facebookresearch/mmf
    "TextVQA": EVALAI_VQA_ACCURACY.score,
    # lmms_eval/tasks/vqav2/utils.py of lmms-eval 0.7.3
    "VQAv2": VQA_ACCURACY.score,
    # anls in lmms_eval/api/metrics.py of lmms-eval
    "DocVQA": ANLS.score,
    # OCRBench/example.py of Yuliang-Liu/MultimodalOCR
    "OCRBench": OCRBENCH_METRIC.score,
    "OCRBench formulas": OCRBENCH_METRIC.score,
    # lmms_eval/tasks/mme/utils.py of lmms-eval, from MME's calculation.py
    "MME": MME_METRIC.score,
    # evaluate.py of AoiDragon/POPE
    "POPE": POPE_METRIC.score,
    # lmms_eval/tasks/realworldqa/utils.py of lmms-eval 0.3.0
    "RealWorldQA": FLEXIBLE_EXTRACT.score,
}
SCORES: list[tuple[str, str, str | list[str], float]] = [
    ("ChartQA", "10.4", "10", 1.0),
    ("ChartQA", "10.6", "10", 0.0),
    ("ChartQA", "2013", "2010", 1.0),
    ("ChartQA", "1,000", "1000", 0.0),
    ("ChartQA", "5%", "5", 0.0),
    ("ChartQA", "0.05", "5%", 1.0),
    ("ChartQA", "$5", "5", 0.0),
    ("ChartQA", "5 dollars", "5", 0.0),
    ("ChartQA", "five", "5", 0.0),
    ("ChartQA", "Yes", "yes", 1.0),
    ("ChartQA", "yes.", "yes", 0.0),
    ("ChartQA", "0.0", "0", 0.0),
    ("ChartQA", "1e3", "1000", 1.0),
    ("ChartQA", " 5 ", "5", 1.0),
    ("ChartQA", "", "5", 0.0),
    ("ChartQA", "-10", "10", 0.0),
    ("ChartQA", "10:30", "10:30", 1.0),
    ("GQA", "Yes.", "yes", 1.0),
    ("GQA", "t-shirt", "tshirt", 1.0),
    ("GQA", "the dog", "dog", 0.0),
    ("GQA", "Left!", "left", 1.0),
    ("GQA", "", "dog", 0.0),
    ("TextVQA", "The Dog.", ["dog"] * 10, 1.0),
    ("TextVQA", "red,blue", ["redblue"] * 10, 1.0),
    ("TextVQA", "two", ["2"] * 3 + ["3"] * 7, 0.9),
    ("TextVQA", "10:30", ["10:30"] * 10, 1.0),
    ("TextVQA", "1,000", ["1000"] * 10, 1.0),
    ("TextVQA", "$5", ["5"] * 10, 0.0),
    ("TextVQA", "don't", ["dont"] * 10, 1.0),
    ("TextVQA", "woman's hat", ["woman 's hat"] * 10, 1.0),
    ("TextVQA", "coca-cola", ["coca cola"] * 10, 1.0),
    ("TextVQA", "none", ["0"] * 4 + ["x"] * 6, 1.0),
    ("VQAv2", "The Dog.", ["dog"] * 10, 1.0),
    ("VQAv2", "red,blue", ["red blue"] * 10, 1.0),
    ("VQAv2", "Yes", ["yes"] * 10, 1.0),
    ("VQAv2", "no, it is not", ["no"] * 10, 0.0),
    ("VQAv2", "two", ["2"] * 3 + ["3"] * 7, 0.9),
    ("DocVQA", "Jan 5", ["January 5"], 0.5556),
    ("DocVQA", "January 5th", ["January 5", "5 January"], 0.8182),
    ("DocVQA", "$1,200", ["1,200"], 0.8333),
    ("DocVQA", "1200 units", ["1,200"], 0.0),
    ("DocVQA", "TOTAL", ["total"], 1.0),
    ("DocVQA", "", ["total"], 0.0),
    ("DocVQA", "the total is 5", ["5"], 0.0),
    ("OCRBench", "The word is STOP.", ["stop"], 1.0),
    ("OCRBench", "st op", ["stop"], 0.0),
    ("OCRBench", "unstoppable", ["stop"], 1.0),
    ("OCRBench", "S.T.O.P", ["stop"], 0.0),
    ("OCRBench", "12.5 kg", ["12.5"], 1.0),
    ("OCRBench", "", ["stop"], 0.0),
    ("OCRBench", "line\none", ["line one"], 1.0),
    ("OCRBench formulas", "\\frac{1}{2}", ["\\frac { 1 } { 2 }"], 1.0),
    ("OCRBench formulas", "\\FRAC{1}{2}", ["\\frac{1}{2}"], 0.0),
    ("OCRBench formulas", "x = \\frac{1}{2}", ["\\frac{1}{2}"], 1.0),
    ("MME", "Yes", "yes", 1.0),
    ("MME", "yes, there is", "yes", 1.0),
    ("MME", "Y", "yes", 1.0),
    ("MME", "NO.", "no", 1.0),
    ("MME", "Nope", "no", 1.0),
    ("MME", "not sure", "no", 1.0),
    ("MME", "n", "no", 1.0),
    ("MME", "There is no dog.", "no", 0.0),
    ("MME", "I say yes", "yes", 0.0),
    ("MME", "know", "no", 1.0),
    ("MME", "**Yes**", "yes", 0.0),
    ("MME", "", "no", 0.0),
    ("MME", "no yes", "yes", 0.0),
    ("POPE", "There is no dog.", "no", 1.0),
    ("POPE", "There is a dog.", "yes", 1.0),
    ("POPE", "No, there is not.", "no", 1.0),
    ("POPE", "Yes. But not so", "yes", 1.0),
    ("POPE", "Nope", "no", 0.0),
    ("POPE", "There isn't any", "no", 0.0),
    ("POPE", "not sure", "no", 1.0),
    ("POPE", "none", "no", 0.0),
    ("POPE", "no,", "no", 1.0),
    ("POPE", "**No**", "no", 0.0),
    ("POPE", "I see a cat", "yes", 1.0),
    ("POPE", "The image does not show one", "no", 1.0),
    ("POPE", "Well. No", "no", 0.0),
    ("RealWorldQA", "B", "B", 1.0),
    ("RealWorldQA", "B.", "B", 1.0),
    ("RealWorldQA", "B. Right lane", "B", 1.0),
    ("RealWorldQA", "Right lane", "B", 1.0),
    ("RealWorldQA", "right lane", "B", 0.0),
    ("RealWorldQA", "The answer is B", "B", 0.0),
    ("RealWorldQA", "(B)", "B", 1.0),
    ("RealWorldQA", "two", "C", 1.0),
    ("RealWorldQA", "2", "C", 1.0),
    ("RealWorldQA", "Two.", "C", 0.0),
    ("RealWorldQA", "Left or Right lane", "A", 1.0),
    ("RealWorldQA", "b", "B", 1.0),
]
DELIBERATE_DIFFERENCES: list[tuple[str, str, str | list[str], float, float]] = [
    # benchmark, answer, reference, here, there
    ("TextVQA", "", ["a"] * 10, 0.0, 1.0),
    ("VQAv2", " ", ["the"] * 10, 0.0, 1.0),
    ("POPE", "", "yes", 0.0, 1.0),
    ("POPE", "NO", "no", 1.0, 0.0),
    ("POPE", "No\nThere is none", "no", 1.0, 0.0),
    ("GQA", "- yes", "yes", 1.0, 0.0),
    ("DocVQA", "cd        ", ["ab"], 0.0, 0.8),
]


def headline(name: str, answer: str, reference: str | list[str]) -> float:
    asked = "Which way?\nA. Left\nB. Right lane\nC. 2\nAnswer with the letter."
    dataset = "HME100k" if name == "OCRBench formulas" else "other"
    question = Question("q", [], reference, fields={"question": asked, "dataset": dataset})
    return next(iter(TEXTS[name](answer, question).values.values()))


@pytest.mark.parametrize(("name", "answer", "reference", "score"), SCORES)
def test_texts_score_as_by_the_published_scripts(
    name: str, answer: str, reference: str | list[str], score: float
) -> None:
    assert headline(name, answer, reference) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(("name", "answer", "reference", "here", "there"), DELIBERATE_DIFFERENCES)
def test_deliberate_differences(name: str, answer: str, reference: str | list[str], here: float, there: float) -> None:
    assert headline(name, answer, reference) == here != there


MATHVISTA = [
    ("Yes", ("Yes", "No"), "text", None, "Yes"),
    ("no", ("Yes", "No"), "text", None, "No"),
    ("(B)", ("Yes", "No"), "text", None, "No"),
    ("B", ("Yes", "No"), "text", None, "No"),
    ("b", ("Yes", "No"), "text", None, "No"),
    ("(b)", ("Yes", "No"), "text", None, "No"),
    ("B. No", ("Yes", "No"), "text", None, "No"),
    ('The answer is "No".', ("Yes", "No"), "text", None, "No"),
    ("I think No", ("Yes", "No"), "text", None, "No"),
    ("14", ("12 cm", "14 cm"), "text", None, "14 cm"),
    ("(A) 12 cm", ("12 cm", "14 cm"), "text", None, "12 cm"),
    ("The answer is 14 cm", ("12 cm", "14 cm"), "text", None, "14 cm"),
    ("B", ("12 cm", "14 cm"), "text", None, "14 cm"),
    ("5", (), "integer", None, "5"),
    ("5.0", (), "integer", None, "5"),
    ("5.7", (), "integer", None, "5"),
    ("five", (), "integer", None, None),
    ("5 apples", (), "integer", None, None),
    ("1,000", (), "integer", None, None),
    ("1.24", (), "float", 1.0, "1.2"),
    ("1.25", (), "float", 1.0, "1.2"),
    ("1.2 m", (), "float", 1.0, None),
    ("x", (), "float", 1.0, None),
    ("[1, 2]", (), "list", None, "[1, 2]"),
    ("[1,2]", (), "list", None, "[1,2]"),
]


@pytest.mark.parametrize(("answer", "choices", "answer_type", "precision", "text"), MATHVISTA)
def test_mathvista_reads_as_its_own_scripts(
    answer: str, choices: tuple[str, ...], answer_type: str, precision: float | None, text: str | None
) -> None:
    # evaluation/extract_answer.py (quick_extract, the reply itself in place of GPT-4's) and calculate_score.py of
    # lupantech/MathVista
    fields = {"answer_type": answer_type, "precision": precision}
    score = MATHVISTA_METRIC.score(answer, Question("q", [], text, choices, fields=fields))
    assert score.parsed == text
