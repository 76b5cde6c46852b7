"""Judged benchmarks, from the fixture of their data and a local judge to their measures."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vila_core.cli.progress import NoProgress
from vila_core.media import Image, Video
from vila_eval.data.sources import DataOptions
from vila_eval.errors import DataError
from vila_eval.judging.judge import judge_samples
from vila_eval.metric import Answered, JudgedMetric, Measure, Scored
from vila_eval.metrics.judged_images import LLAVA_BENCH, MM_VET
from vila_eval.metrics.judged_videos import ACTIVITYNET_QA, ASPECTS, VIDEO_CHATGPT
from vila_eval.options import JudgeOptions
from vila_eval.records.schema import PromptPart, SampleRecord
from vila_eval.task import Question, Task, as_questions
from vila_eval.tasks.judged import ACTIVITYNETQA, JUDGED_TASKS, LLAVA_IN_THE_WILD, MMVET, VIDEOCHATGPT, video_chatgpt
from vila_eval.testing import check_task


def answered(task: Task, cache: Path, answer: Callable[[Question], str]) -> list[SampleRecord]:
    """Return the samples of a task's fixture as a run writes them before scoring."""
    rows = task.source.open(DataOptions(cache=cache, fixtures=True))
    questions = [question for index in range(len(rows)) for question in as_questions(task, rows, index)]
    return [
        SampleRecord(
            id=question.id,
            index=index,
            row=index,
            key=question.id,
            prompt=tuple(prompt_part(part) for part in question.prompt),
            answer=answer(question),
            reference=question.answer,
            groups=dict(question.groups),
            cluster=question.cluster,
            fields=dict(question.fields),
        )
        for index, question in enumerate(questions)
    ]


def prompt_part(part: object) -> PromptPart:
    if isinstance(part, str):
        return PromptPart(kind="text", text=part)
    return PromptPart(kind="image" if isinstance(part, Image) else "video")


def judged(task: Task, judge: Any, folder: Path, answer: Callable[[Question], str]) -> list[SampleRecord]:
    assert isinstance(task.metric, JudgedMetric)
    options = JudgeOptions(judge.url, retries=0)
    return judge_samples(
        task.metric, answered(task, folder / "data", answer), folder / "results", options, NoProgress()
    )


def summarized(task: Task, records: list[SampleRecord]) -> dict[str, Measure]:
    assert isinstance(task.metric, JudgedMetric)
    measures = task.metric.summarize([record.scored for record in records if record.values is not None])
    return {
        measure.name if measure.group is None else f"{measure.name}/{measure.group[1]}": measure for measure in measures
    }


def values(measures: dict[str, Measure]) -> dict[str, float]:
    return {name: measure.estimate.mean for name, measure in measures.items()}


def said(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def line_after(text: str, label: str) -> str:
    return text.split(label)[-1].split("\n", 1)[0].strip()


@pytest.mark.parametrize("task", JUDGED_TASKS, ids=lambda task: task.name)
def test_each_task_has_a_fixture_that_loads(task: Task) -> None:
    assert check_task(task, limit=50) == []


def test_names_and_tags_are_those_of_vila() -> None:
    assert {task.name: task.tags for task in JUDGED_TASKS} == {
        "activitynetqa": ("openai",),
        "videochatgpt": ("openai", "video"),
        "llava_in_the_wild": ("core", "openai"),
        "mmvet": ("core", "openai"),
    }


def test_activitynet_qa_end_to_end(judge: Any, tmp_path: Path) -> None:
    def react(body: dict[str, Any], number: int) -> str:
        right = line_after(said(body), "Correct Answer: ") == line_after(said(body), "Predicted Answer: ")
        return "{'pred': 'yes', 'score': 5}" if right else "{'pred': 'no', 'score': 1}"

    judge.react = react
    records = judged(
        ACTIVITYNETQA,
        judge,
        tmp_path,
        lambda question: str(question.answer) if question.groups["type"] != "color" else "red",
    )
    measures = summarized(ACTIVITYNETQA, records)
    assert values(measures) == {
        "accuracy": 0.75,
        "score": 4.0,
        "accuracy/object": 1.0,
        "score/object": 5.0,
        "accuracy/yes/no": 1.0,
        "score/yes/no": 5.0,
        "accuracy/color": 0.0,
        "score/color": 1.0,
        "accuracy/number": 1.0,
        "score/number": 5.0,
    }
    assert (measures["accuracy"].unit, measures["score"].unit) == ("share", "points")
    # The means of the two videos are 1 and 0.5; half of their difference is the standard error of the mean of both.
    assert measures["accuracy"].estimate.standard_error == pytest.approx(0.25)
    assert "Question: what color is the square\n" in "".join(said(body) for body in judge.requests)


def test_activitynet_qa_uses_the_lmms_eval_prompt_and_finds_other_video_types(tmp_path: Path) -> None:
    rows = ACTIVITYNETQA.source.open(DataOptions(cache=tmp_path, fixtures=True))
    (question,) = as_questions(ACTIVITYNETQA, rows, 2)
    video, text = question.prompt
    assert text == "What color is the square? Answer the question using a single word or phrase."
    assert isinstance(video, Video)
    assert str(video.source).endswith("all_test/v_fixtureBlue.mkv")


QA = Question("q", ["What is it? Answer …"], "a dog", fields={"question": "what is it"})


@pytest.mark.parametrize(
    ("reply", "accuracy", "score"),
    [
        ("{'pred': 'yes', 'score': 4.8}", 1.0, 4.0),  # the prompt's own example; its integer part counts
        ('```python\n{"pred": "No", "score": "2"}\n```', 0.0, 2.0),
        ("{''pred': 'yes', ''score': 3}", 1.0, 3.0),
        ("pred: yes, score: 5", 1.0, 5.0),
    ],
)
def test_activitynet_qa_reads_verdicts(reply: str, accuracy: float, score: float) -> None:
    assert ACTIVITYNET_QA.read([reply], "", QA).values == {"accuracy": accuracy, "score": score}


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "yes",
        "{'pred': 'yes'}",
        "{'pred': 'maybe', 'score': 3}",
        "{'pred': 'yes', 'score': 9}",
        "{'pred': 'yes', 'score': -1}",
        "{'pred': 'yes', 'score': 1} or {'pred': 'no', 'score': 1}",
        "{'pred': 'yes', 'score': __import__('os').getpid()}",
        "(" * 100_000,
    ],
)
def test_activitynet_qa_rejects_other_replies(reply: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        ACTIVITYNET_QA.read([reply], "", QA)


def test_video_chatgpt_gives_five_scores(judge: Any, tmp_path: Path) -> None:
    scores = {
        "factual accuracy": 4,
        "detail orientation": 3,
        "contextual understanding": 4,
        "temporal accuracy": 2,
        "consistency": 1,
    }

    def react(body: dict[str, Any], number: int) -> str:
        (score,) = [value for what, value in scores.items() if f"only as a {what} score" in said(body)]
        return f"{{''score': {score}.9}}"

    judge.react = react
    records = judged(VIDEOCHATGPT, judge, tmp_path, lambda question: f"answer to <{question.prompt[-1]}>")
    measures = summarized(VIDEOCHATGPT, records)
    assert values(measures) == {
        "correctness": 4.0,
        "detailed_orientation": 3.0,
        "context": 4.0,
        "temporal": 2.0,
        "consistency": 1.0,
    }
    # Two videos with two generic questions, one temporal question and one pair each.
    assert [measure.estimate.n for measure in measures.values()] == [4, 4, 4, 2, 2]
    assert {measure.unit for measure in measures.values()} == {"points"}
    assert len(judge.requests) == 4 * 3 + 2 + 2
    pairs = [said(body) for body in judge.requests if "Question 2" in said(body)]
    assert sorted(line_after(text, "Correct Answer:") for text in pairs) == ["blue", "red"]
    for text in pairs:
        assert line_after(text, "Predicted Answer to Question 1:") == "answer to <What color is the shape?>"
        assert (
            line_after(text, "Predicted Answer to Question 2:") == "answer to <Which color does the moving shape have?>"
        )


def test_a_limit_of_video_chatgpt_keeps_videos_complete(tmp_path: Path) -> None:
    rows = VIDEOCHATGPT.source.open(DataOptions(cache=tmp_path, fixtures=True))
    assert VIDEOCHATGPT.keep_together == "video_name"
    assert [rows[index]["video_name"] for index in range(len(rows))] == ["v_fixture_red"] * 5 + ["v_fixture_blue"] * 5
    assert sorted(rows[index]["config"] for index in range(5)) == [
        "Consistency",
        "Consistency",
        "Generic",
        "Generic",
        "Temporal",
    ]


def test_half_a_pair_is_counted_but_not_scored() -> None:
    first = Question("0", ["Which color?"], "red", fields={"aspects": ["consistency"], "pair": "v", "place": 1})
    (alone,) = VIDEO_CHATGPT.together([Answered(first, "red")])
    assert VIDEO_CHATGPT.requests("red", alone) == []
    score = VIDEO_CHATGPT.read([], "red", alone)
    assert (score.values, score.unread) == ({}, "the other question of the pair was not asked")


def test_video_chatgpt_names_a_missing_column_and_its_configuration() -> None:
    with pytest.raises(DataError, match=r"Generic has no column 'question'\. Expected: video_name, question, answer"):
        video_chatgpt.ask({"config": "Generic", "video_name": "v", "answer": "a", "text": "?"})


def test_answers_with_braces_do_not_change_the_prompts() -> None:
    question = Question("0", ["{predicted}?"], "{answer}", fields={"aspects": list(ASPECTS)[:4]})
    for request in VIDEO_CHATGPT.requests("{question}", question):
        text = str(request.messages[1]["content"])
        assert "Question: {predicted}?\nCorrect Answer: {answer}\nPredicted Answer: {question}\n\nProvide" in text
        assert text.endswith("For example, your response should look like this: {''score': 4.8}.")


def test_llava_bench_is_a_ratio_of_means(judge: Any, tmp_path: Path) -> None:
    verdicts = {"What color": "8 8\nBoth are right.", "Describe": "10, 4", "What could": "6 9.0"}
    judge.react = lambda body, number: next(
        verdict for start, verdict in verdicts.items() if f"[Question]\n{start}" in said(body)
    )
    measures = summarized(LLAVA_IN_THE_WILD, judged(LLAVA_IN_THE_WILD, judge, tmp_path, lambda question: "A shape."))
    assert values(measures) == pytest.approx(
        {
            "relative_score": 100 * 21 / 24,
            "score": 7.0,
            "reference_score": 8.0,
            "relative_score/conv": 100.0,
            "relative_score/detail": 40.0,
            "relative_score/complex": 150.0,
        }
    )
    text = said(judge.requests[0])
    assert text.startswith("[Context]\nA red circle on a grey background.\n\n[Question]\n")
    assert "[Assistant 2]\nA shape.\n\n[End of Assistant 2]" in text


def test_the_standard_error_of_the_ratio_is_linearized() -> None:
    scored = [
        Scored(Question(str(number), ["?"], "r"), "", LLAVA_BENCH.read([reply], "", Question("", ["?"], "r")))
        for number, reply in enumerate(["8 8", "10 4", "6 9"])
    ]
    estimate = LLAVA_BENCH.summarize(scored)[0].estimate
    # (y - R x) / mean x with R = 7/8: 1/8, -4.75/8, 3.75/8; the mean is 0. Three independent samples: sqrt(sum of
    # squares / 2 / 3).
    assert estimate.mean == pytest.approx(87.5)
    assert estimate.standard_error == pytest.approx(100 * math.sqrt(1 + 4.75**2 + 3.75**2) / 8 / math.sqrt(6))


@pytest.mark.parametrize(
    "reply", ["", "8", "Assistant 1: 8, Assistant 2: 7", "8 7 6", "8 11", "-8 7", "The scores are:\n8 7", "8-7"]
)
def test_llava_bench_needs_two_scores_alone_on_the_first_line(reply: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        LLAVA_BENCH.read([reply], "", Question("q", ["?"], "r"))


def test_mm_vet_reports_each_capability_and_combination(judge: Any, tmp_path: Path) -> None:
    def react(body: dict[str, Any], number: int) -> str:
        truth = said(body).split("\n")[-1].split("|")[1].strip()
        return {"42": "1.0", "5": "0.5", "circle <AND> red": "0.0 wrong"}.get(truth, "I cannot tell")

    judge.react = react
    records = judged(MMVET, judge, tmp_path, lambda question: "an answer")
    assert [record.judge_error is None for record in records] == [True, True, True, False]
    assert values(summarized(MMVET, records)) == {
        "score": 0.5,
        "score/recognition": 0.0,
        "score/OCR": 0.75,
        "score/math": 0.5,
        "score/ocr": 1.0,
        "score/ocr, math": 0.5,
        "score/rec": 0.0,
    }
    assert said(judge.requests[0]).startswith("Compare the ground truth and prediction from AI models")
    endings = {said(body).split("\n")[-1] for body in judge.requests}
    assert "What shape is it, and of what color? | circle <AND> red | an answer | " in endings
    assert "\n\nQuestion | Ground truth | Prediction | Correctness\n--- |" in said(judge.requests[0])


@pytest.mark.parametrize(("reply", "score"), [("0.7", 0.7), (" 1.0\n", 1.0), ("0 because", 0.0), ("1", 1.0)])
def test_mm_vet_reads_the_first_word(reply: str, score: float) -> None:
    assert MM_VET.read([reply], "", Question("q", ["?"], "a")).values == {"score": score}


@pytest.mark.parametrize("reply", ["", "1.5", "Score: 0.5", "0.5/1", "-0.1", "nan", ".5.5"])
def test_mm_vet_rejects_other_replies(reply: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        MM_VET.read([reply], "", Question("q", ["?"], "a"))


def test_llava_bench_asks_the_judge_as_its_own_script_does() -> None:
    # llava/eval/eval_gpt_review_bench.py of haotian-liu/LLaVA
    question = Question("1", ["What is it?"], "a reference", fields={"context": "a caption"})
    (request,) = LLAVA_BENCH.requests("an answer", question)
    system = "You are a helpful and precise assistant for checking the quality of the answer."
    assert request.messages[0] == {"role": "system", "content": system}
    assert (request.temperature, request.max_tokens) == (0.2, 1024)
