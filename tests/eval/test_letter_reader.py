"""The general letter reader on the forms in which models answer. Only unmistakable answers are read."""

import pytest

from vila_eval.metrics.choices.general import extract_letter
from vila_eval.metrics.choices.mmbench import extract_mmbench_choice
from vila_eval.metrics.choices.mmmu_pro import extract_mmmu_pro_choice

TOYS = ["The red cube", "The blue ball", "The green cone", "The yellow ring"]
VERDICTS = ["Yes", "No", "Not enough information", "False"]

ANSWERS: list[tuple[str, str | None]] = [
    ("Ans: B", "B"),
    ('{"answer": "B"}', "B"),
    ("I eliminate A and C, leaving B.", "B"),
    ("I rule out A. I rule out C. B remains.", "B"),
    ("Between A and B, I choose B", "B"),
    ("A是错的，B是对的", "B"),
    ("Aは間違いで、Bが正しい", "B"),
    ("B 또는 C", None),
    ("答案是B或C", None),
    ("Answer: BC", None),
    ("The answer is B, not option A.", "B"),
    ("The answer is B because option C is not visible.", "B"),
    ("B\n\nOption A: wrong. Option C: wrong.", "B"),
    ("The answer isn't option A", None),
    ("B is correct.", "B"),
    ("It is B.", "B"),
    ("It's B.", "B"),
    ("答案是B", "B"),
    ("（B）", "B"),
    ("B。", "B"),
    ("\\boxed{\\text{B}}", "B"),
    ("The answer is $\\boxed{B}$.", "B"),
    ("<answer>B</answer>", "B"),
    ("B.The blue ball", "B"),
    ("答えはB", "B"),
    ("答えはBです。", "B"),
    ("정답은 B", "B"),
    ("정답은 B입니다.", "B"),
    ("Ｂ", "B"),
    ("**B**", "B"),
    ("**B**. A square.", "B"),
    ("**Answer:** B", "B"),
    ("(B)", "B"),
    ("[B]", "B"),
    ("Option B", "B"),
    ("option (b)", "B"),
    ("final answer: B", "B"),
    ("<think>Maybe A. Answer: A</think>B", "B"),
    ("<think>A or C?\n</think>\n\nThe answer is B.", "B"),
    ("<think>I think A", None),
    ("A: no; B: yes", "B"),
    ("not A", None),
    ("A is wrong", None),
    ("A is incorrect.", None),
    ("B rather than A", "B"),
    ("I choose B rather than A.", "B"),
    ("The answer isn't A but B.", "B"),
    ("It's not A, it's B", "B"),
    ("Answer: B or C", None),
    ("A and B", None),
    ("B or C", None),
    ("I", None),
    ("A dog", None),
    ("A blue ball", None),
    ("The answer is B because A is wrong.", "B"),
    ("I choose B", "B"),
    ("B, because the ball is blue", "B"),
    ("Answer: A man", None),
    ("The answer is A because of it", "A"),
    ("The correct answer is (b)", "B"),
    ("answer: b", "B"),
    ("B) or C)", None),
    ("B/C", None),
    ("(A) and (B)", None),
    ("The answer could be B or C.", None),
    ("It could be B or C. I choose C.", "C"),
    ("A is wrong, C is wrong, D is wrong, so B.", "B"),
    ("B. Not A.", "B"),
    ("Neither A nor C. The answer is D.", "D"),
    ("Let me think about it.\n\nB", "B"),
    ("The ball is blue.\n(B)", "B"),
    ("应该选B", "B"),
    ("选B", "B"),
    ("选项B", "B"),
    ("B选项正确", "B"),
    ("答案不是A，而是B", "B"),
    ("答案：B", "B"),
    ("正确答案是（B）。", "B"),
    ("B が正解です", "B"),
    ("正解はBです", "B"),
    ("Aではなく、Bです", "B"),
    ("답: B", "B"),
    ("B가 정답입니다", "B"),
    ("A가 아니라 B입니다", "B"),
    ("Answer: B. A is wrong", "B"),
    ("B. The blue ball, since A is red", "B"),
    ("The blue ball", "B"),
    ("It is the blue ball, I think", "B"),
    ("It is not the blue ball", None),
    ("Plan B was used.", None),
    ("vitamin C", None),
    ("AB", None),
    ("E", None),
    ("The answer is E", None),
    ("B, C", None),
    ("B\nC", None),
    ("b. the blue ball", "B"),
    ("b) The blue ball", "B"),
    ("Based on the picture, the answer is B.", "B"),
    ("I don't think the answer is A.", None),
    ("I'm not sure, but I think B", "B"),
    ("The correct option is **(B)**.", "B"),
    ('My answer is "B".', "B"),
    ("The answer is: B: The blue ball", "B"),
    ("Both A and B are right", None),
    ("I would go with B", "B"),
    ("I'd say B.", "B"),
    ("B seems right", "B"),
    ("A seems wrong; B fits", "B"),
    ("The answer is A. Wait, no. The answer is B.", "B"),
    ("La respuesta es B", "B"),
    ("Die Antwort ist B", "B"),
    ("La réponse est B.", "B"),
    ("None of A, B, C or D", None),
    ("None of the above", None),
    ("", None),
    ("A.I. is used", None),
    ("Option A is a red cube, option B is a blue ball", None),
    ("The best choice is B", "B"),
    ("Choice B.", "B"),
    ("B is the wrong answer", None),
    ("The answer is definitely B!", "B"),
    ("A? No. B.", "B"),
    ("B (the blue ball)", "B"),
    ("Answer - B", "B"),
    ("Answer:B", "B"),
    ("ANSWER: B", "B"),
    ("The answer is option B.", "B"),
    ("Sure! B", "B"),
    ("答えは「B」です", "B"),
    ("「B」", "B"),
    ("\\(B\\)", "B"),
    ("$B$", "B"),
    ("The correct answer is not A. It is C.", "C"),
    ("Option A is not correct. Option B is correct.", "B"),
    ("B and not A", "B"),
    ("Not A. B.", "B"),
    ("A isn't right but B is.", "B"),
    ("Answer:\n\nB", "B"),
    ("Answer: **B**\n\nExplanation: A and C are wrong", "B"),
    ("The answer is B, as option A shows a cube.", "B"),
    ("I think the answer is B and not C", "B"),
    ("The answer is either A or B", None),
    ("A: The red cube\nB: The blue ball", None),
    ("<answer>B or C</answer>", None),
    ("<answer>The blue ball</answer>", "B"),
    ("#### B", "B"),
    ("B\n", "B"),
    ("A. The red cube is not there, the answer is B", "B"),
    ("The answer is B instead of A", "B"),
    ("The answer is B over A", "B"),
    ("B > A", None),
    ("A man stands", None),
    ("I think so", None),
]

DENIALS_AS_OPTIONS = [
    ("B. No", "B"),
    ("(B) No", "B"),
    ("B: No", "B"),
    ("No", "B"),
    ("C. Not enough information", "C"),
    ("D. False", "D"),
    ("The answer is B: No", "B"),
    ("The answer is D. False", "D"),
    ("Answer: C) Not enough information", "C"),
    ("No, it's C", "C"),
]


@pytest.mark.parametrize(("answer", "letter"), ANSWERS, ids=[repr(answer) for answer, _ in ANSWERS])
def test_usual_answers(answer: str, letter: str | None) -> None:
    assert extract_letter(answer, TOYS) == letter


@pytest.mark.parametrize(("answer", "letter"), DENIALS_AS_OPTIONS)
def test_options_whose_text_is_a_denial(answer: str, letter: str) -> None:
    assert extract_letter(answer, VERDICTS) == letter


@pytest.mark.parametrize(
    "part", ["B ", "B or ", "(B) ", "answer is ", "the answer is B, ", "not ", "<think>", "{", "\ud800", "\n"]
)
def test_long_answers_take_no_time(part: str) -> None:
    extract_letter(part * (10**6 // len(part)), TOYS)


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("It's B.", TOYS, "B"),
        ("I choose B", TOYS, "B"),
        ("B is correct", TOYS, "B"),
        ("B, because it is round", TOYS, "B"),
        ("这是蓝色的球", ["红色的方块", "蓝色的球"], "B"),
        ("The correct answer is **B**. Here's why: A and C are not round.", TOYS, "B"),
        ("It shows 10:30", ["10", "30"], None),
        ("It shows 10.", ["10", "30"], "A"),
        ("Cannot determine the answer: B", TOYS, None),
        ("A and B", TOYS, None),
        ("", TOYS, None),
    ],
)
def test_mmbench_reads_like_its_toolkit(answer: str, options: list[str], letter: str | None) -> None:
    # can_infer in vlmeval/utils/matching_util.py of open-compass/VLMEvalKit
    assert extract_mmbench_choice(answer, options) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Reasoning about A.\nAnswer: C", "C"),
        ("Answer: $C$", "C"),
        ("Answer: A or C, so (B)", "B"),  # two letters after "Answer:": the rules for the whole answer
        ("A. James Irvine", "A"),
        ("B James Irvine", "B"),
        ("(A) or (C)", "C"),
        ("it was of course the james irvine", "D"),
        ("James Irvine", None),
        ("", None),
    ],
)
def test_mmmu_pro_reads_like_its_own_script(answer: str, letter: str | None) -> None:
    # mmmu-pro/evaluate.py of MMMU-Benchmark/MMMU. On the GPT-4o outputs published there this gives its 40.1 (standard,
    # direct), 55.0 (standard, chain of thought) and 50.1 (vision, chain of thought).
    assert extract_mmmu_pro_choice(answer, ("x1", "x2", "x3", "James Irvine")) == letter
