"""Video tasks, from the fixtures of their data to prompts and measures, and how their rules read letters."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vila_core.errors import ConfigError
from vila_core.media import Video
from vila_eval.data.sources import DataOptions
from vila_eval.errors import DataError
from vila_eval.metric import Answered, MeanMetric
from vila_eval.metrics.choices.eventbench import extract_initial
from vila_eval.metrics.choices.lmms_mcq import extract_lmms_choice
from vila_eval.metrics.choices.longvideobench import LONGVIDEOBENCH_CHOICE, extract_longvideobench_choice
from vila_eval.metrics.choices.mvbench import extract_mvbench_choice
from vila_eval.metrics.choices.nextqa import NEXTQA_CHOICE, extract_nextqa_choice
from vila_eval.metrics.choices.perceptiontest import extract_perceptiontest_choice
from vila_eval.metrics.choices.videomme import extract_videomme_choice
from vila_eval.metrics.choices.vila import VILA_CHOICE, extract_vila_choice
from vila_eval.task import Question, Task, as_questions
from vila_eval.tasks.video import VIDEO_TASKS
from vila_eval.tasks.video.cinepile import CINEPILE
from vila_eval.tasks.video.egoschema import EGOSCHEMA_TEST, EGOSCHEMA_VAL
from vila_eval.tasks.video.eventbench import EVENTBENCH_VAL
from vila_eval.tasks.video.longvideobench import LONGVIDEOBENCH_TEST_V, LONGVIDEOBENCH_VAL_V
from vila_eval.tasks.video.mlvu import MLVU
from vila_eval.tasks.video.mvbench import MVBENCH
from vila_eval.tasks.video.nextqa import NEXTQA_MC_TEST, NEXTQA_OE_TEST, NEXTQA_OE_VAL
from vila_eval.tasks.video.perceptiontest import PERCEPTIONTEST_VAL_MC
from vila_eval.tasks.video.videomme import Subtitle, parse_subtitles, shown_subtitles
from vila_eval.tasks.video.vnbench import VNBENCH_VAL
from vila_eval.tasks.video.youcook2 import YOUCOOK2_VAL
from vila_eval.testing import check_task

BY_NAME = {task.name: task for task in VIDEO_TASKS}


def measure(task: Task, answer: Callable[[Question], str]) -> dict[str, float]:
    """Return the measures of a task's fixture by "name", or "name/value" for a group."""
    measures = check_task(task, answer, limit=20)
    return {
        found.name if found.group is None else f"{found.name}/{found.group[1]}": found.estimate.mean
        for found in measures
    }


def first_prompt(task: Task, cache: Path, index: int = 0) -> list[object]:
    rows = task.source.open(DataOptions(cache=cache, fixtures=True))
    return list(as_questions(task, rows, index)[0].prompt)


def text_of(task: Task, cache: Path, index: int = 0) -> object:
    video, text = first_prompt(task, cache, index)
    assert isinstance(video, Video)
    return text


@pytest.mark.parametrize(
    ("read", "answer", "letter"),
    [
        (extract_initial, "B) red", "B"),
        (extract_initial, " Blue", "B"),
        (extract_initial, "b", "b"),  # not the letter of an option
        (extract_initial, "", None),
        (lambda answer: extract_vila_choice(answer, "ABCDE"), "C.", "C"),
        (lambda answer: extract_vila_choice(answer, "ABCDE"), "(A) or (B)", "B"),
        (lambda answer: extract_vila_choice(answer, "ABCDE"), "It is A or B here", "B"),
        (lambda answer: extract_vila_choice(answer, "ABCDE"), "B: red", None),
        (lambda answer: extract_nextqa_choice(answer, ("a cat", "a dog")), "B. a dog", "B"),
        (
            lambda answer: extract_nextqa_choice(answer, ("a cat", "a dog")),
            "DNA is",
            "A",
        ),  # a capital before a space, inside a word
        (lambda answer: extract_nextqa_choice(answer, ("a cat", "a dog")), "i think that it is a dog", "B"),
        (
            lambda answer: extract_nextqa_choice(answer, ("a cat", "a dog")),
            "it is a dog",
            None,
        ),  # not more than five words
        (extract_longvideobench_choice, "The best answer is B", "B"),
        (extract_longvideobench_choice, "Answer: B", "A"),  # the first capital, even inside a word
        (extract_longvideobench_choice, "it is red", None),
        (extract_perceptiontest_choice, "Answer: (B)", "B"),
        (extract_perceptiontest_choice, "b", None),
        (extract_mvbench_choice, "b. a cat", "B"),
        (extract_mvbench_choice, "(C)", "C"),
        (extract_mvbench_choice, "A man opens the door", "A"),  # an article counts as a letter
        (extract_mvbench_choice, "option_d", "D"),
        (extract_mvbench_choice, "the cat", None),
        (lambda answer: extract_lmms_choice(answer, "ABCD"), "B) it is A", "B"),  # the start ranks above the end
        (
            lambda answer: extract_lmms_choice(answer, "ABCD"),
            "The answer is B because A is wrong",
            "A",
        ),  # the last after the phrase
        (lambda answer: extract_lmms_choice(answer, "ABCD"), "Perhaps (C), perhaps D: who knows", "C"),
        (lambda answer: extract_lmms_choice(answer, "ABCD"), "no idea", None),
        (lambda answer: extract_lmms_choice(answer, "ABCD"), "...", None),
    ],
)
def test_each_benchmark_reads_letters_by_its_own_rules(
    read: Callable[[str], str | None], answer: str, letter: str | None
) -> None:
    assert read(answer) == letter


@pytest.mark.parametrize("metric", [VILA_CHOICE, NEXTQA_CHOICE, LONGVIDEOBENCH_CHOICE], ids=lambda metric: metric.name)
@pytest.mark.parametrize("answer", ["", "???", "\ud800"])
def test_an_answer_without_a_letter_is_wrong(metric: MeanMetric, answer: str) -> None:
    # The published scripts draw a random letter.
    for right in "ABC":
        score = metric.score(answer, Question("q1", (), right, ("red", "green", "blue")))
        assert (score.values["accuracy"], score.parsed, score.unread) == (0.0, None, "no single option named")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("**B**. A square.", "B"),
        ("The answer is B because A is wrong.", "B"),
        ("(C)", "C"),
        ("Both", "B"),
        ("Answer: B", "A"),  # "Answer:" is no prefix there
        ("b", None),
        ("", None),
    ],
)
def test_video_mme_reads_letters_like_its_own_script(answer: str, letter: str | None) -> None:
    # evaluation/eval_your_results.py of BradyFU/Video-MME
    assert extract_videomme_choice(answer) == letter


@pytest.mark.parametrize("task", [task for task in VIDEO_TASKS if task is not YOUCOOK2_VAL], ids=lambda task: task.name)
def test_right_answers_score_1(task: Task) -> None:
    measures = check_task(task, limit=20)
    assert all(found.estimate.mean == 1.0 for found in measures)
    assert bool(measures) == (task.submission is None)
    assert task.has_video


def test_tags_are_those_of_vila() -> None:
    local = {name for name, task in BY_NAME.items() if "local" in task.tags}
    frames = (8, 16, 32, 64, 128, 256, 512)
    assert local == {
        *("egoschema_val", "eventbench_val", "vnbench_val", "cinepile", "mvbench", "nextqa_mc_test", "nextqa_oe_val"),
        *("perceptiontest_val_mc", "longvideobench_val_v"),
        *(f"{name}-{count}" for name in ("videomme", "videomme_w_subtitle") for count in frames),
    }
    assert {name for name, task in BY_NAME.items() if "regression" in task.tags} == {
        *("cinepile", "videomme-8", "videomme_w_subtitle-64", "videomme_w_subtitle-128", "videomme_w_subtitle-256"),
        "videomme_w_subtitle-512",
    }
    assert {name for name, task in BY_NAME.items() if "submission" in task.tags} == {
        *("egoschema_test", "longvideobench_test_v", "nextqa_oe_test"),
    }
    assert [BY_NAME[f"videomme-{count}"].num_video_frames for count in frames] == list(frames)


def test_egoschema(tmp_path: Path) -> None:
    assert measure(EGOSCHEMA_VAL, lambda question: "(A)") == {"accuracy": pytest.approx(1 / 3)}
    assert text_of(EGOSCHEMA_VAL, tmp_path) == (
        "Watching the video and answer with the option's letter from the given choices directly.What moves?\n"
        "A. A circle.\nB. A square.\nC. A triangle.\nD. Nothing.\nE. A cube.\n"
    )
    assert EGOSCHEMA_TEST.submission is not None
    options = tuple("abcde")
    answered = [
        Answered(Question("uid-1", (), None, options), "E."),
        Answered(Question("uid-2", (), None, options), "(B) b"),
    ]
    assert EGOSCHEMA_TEST.submission.write(answered) == "q_uid,answer\nuid-1,4\nuid-2,1\n"


def test_eventbench_counts_an_answer_without_a_letter_as_wrong() -> None:
    answers = {"0": "A", "1": "B) A square.", "2": "I think C", "3": ""}
    assert measure(EVENTBENCH_VAL, lambda question: answers[question.id]) == {
        "accuracy": 0.5,
        "accuracy/Causal Reasoning": 1.0,
        "accuracy/Event Description": 0.0,
    }


def test_vnbench_needs_all_four_orders_right() -> None:
    def answer(question: Question) -> str:
        return "A" if question.id == "cnt_insert_0_2" else question.answer  # where "C" is right

    assert measure(VNBENCH_VAL, answer) == {
        "accuracy": 0.5,
        "try_accuracy": 7 / 8,
        "accuracy/retrieval": 1.0,
        "accuracy/counting": 0.0,
        "accuracy/ret_edit": 1.0,
        "accuracy/cnt_insert": 0.0,
    }
    with pytest.raises(ConfigError, match="all 4 orders"):
        check_task(VNBENCH_VAL, limit=3)


def test_vnbench_is_read_from_the_data_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"huggingface\.co/datasets/videoniah/VNBench"):
        VNBENCH_VAL.source.open(DataOptions(cache=tmp_path, mirror=tmp_path))
    folder = tmp_path / "videoniah/VNBench"
    folder.mkdir(parents=True)
    assert VNBENCH_VAL.source.open(DataOptions(cache=tmp_path, fixtures=True)).origin["revision"] == "fixture"
    row = {
        "video": "/v/a.mp4",
        "question": "?",
        "options": [1, 2, 3, 4],
        "gt_option": "A",
        "type": "cnt_edit1",
        "try": 0,
    }
    (folder / "VNBench-main-4try.json").write_text(f"[{row}]".replace("'", '"'), encoding="utf-8")
    (folder / "videos/v").mkdir(parents=True)
    (folder / "videos/v/a.mp4").write_bytes(b"")
    rows = VNBENCH_VAL.source.open(DataOptions(cache=tmp_path, mirror=tmp_path))
    (question,) = as_questions(VNBENCH_VAL, rows, 0)
    assert isinstance(question.prompt[0], Video)
    assert question.prompt[0].source == folder / "videos/v/a.mp4"


def test_media_missing_on_the_hub_must_be_fetched_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Get them from the Google Drive link.*--data DIR"):
        EVENTBENCH_VAL.source.open(DataOptions(cache=tmp_path))


def test_cinepile(tmp_path: Path) -> None:
    assert measure(CINEPILE, lambda question: "C") == {
        "accuracy": 0.25,
        "accuracy/temp": 0.0,
        "accuracy/th": 0.0,
        "accuracy/crd": 1.0,
        "accuracy/sta": 0.0,
    }
    text = text_of(CINEPILE, tmp_path)
    assert str(text).endswith(
        "Your output should be just one of A,B,C,D,E and nothing else.\n\n**Subtitles:** \nLook, it "
        "moves!\n\nQuestion: What moves?"
        "\n- A) A circle.\n- B) A square.\n- C) A triangle.\n- D) Nothing.\n- E) A cube."
    )


def test_mvbench_averages_its_twenty_parts(tmp_path: Path) -> None:
    found = measure(MVBENCH, lambda question: "B" if question.groups["part"] == "action_count" else "(A) A circle.")
    assert (found["average"], found["accuracy/action_count"], found["accuracy/moving_count"]) == (
        pytest.approx(0.95),
        0.0,
        1.0,
    )
    assert len(found) == 22
    assert text_of(MVBENCH, tmp_path) == (
        "Question:What moves?\nOption:\n(A) A circle.\n(B) A square.\n(C) A triangle.\n(D) Nothing.\nOnly give the "
        "best option.\n"
    )


def test_nextqa_with_options(tmp_path: Path) -> None:
    assert measure(NEXTQA_MC_TEST, lambda question: "A. A circle.") == {
        "accuracy": pytest.approx(1 / 3),
        "accuracy/causal": 1.0,
        "accuracy/temporal": 0.0,
        "accuracy/descriptive": 0.0,
        "accuracy/CW": 1.0,
        "accuracy/TN": 0.0,
        "accuracy/DL": 0.0,
    }
    assert (
        text_of(NEXTQA_MC_TEST, tmp_path)
        == "what moves\nA. A circle.\nB. A square.\nC. A triangle.\nD. Nothing.\nE. A cube."
    )


def test_nextqa_with_open_answers(tmp_path: Path) -> None:
    answers = {"1-0": "a square", "1-1": "It walks.", "1-2": "Yes", "1-3": "cats and dogs"}
    # The better of the references "circle" (6/8) and "a round shape" (6/7); run and walk 6/8; exact; cat 6/8, dog 1.
    found = measure(NEXTQA_OE_VAL, lambda question: answers[question.id])
    assert found["wups"] == pytest.approx((6 / 7 + 0.75 + 1 + 0.75) / 4)
    assert found["wups_0.9"] == pytest.approx((0.6 / 7 + 0.075 + 1 + 0.075) / 4)
    assert found["wups/descriptive"] == pytest.approx((1 + 0.75) / 2)
    assert found["wups/TN"] == 0.75  # "TP" counts as "TN"
    assert text_of(NEXTQA_OE_VAL, tmp_path) == "what moves\nAnswer a question using a short phrase or sentence."
    assert NEXTQA_OE_TEST.submission is not None
    answered = [Answered(Question(qid, (), fields={"video": "7", "qid": qid}), f"answer {qid}") for qid in ("0", "1")]
    assert NEXTQA_OE_TEST.submission.write(answered) == '{"7": {"0": "answer 0", "1": "answer 1"}}'


def test_perceptiontest(tmp_path: Path) -> None:
    found = measure(PERCEPTIONTEST_VAL_MC, lambda question: "A")
    assert (
        found["accuracy"],
        found["accuracy/physics"],
        found["accuracy/semantics"],
        found["accuracy/descriptive"],
    ) == (
        0.5,
        0.5,
        1.0,
        0.5,
    )
    assert text_of(PERCEPTIONTEST_VAL_MC, tmp_path) == (
        "What moves?\nA. A circle.\nB. A square.\nC. A triangle.\nAnswer with the option's letter from the given "
        "choices directly."
    )


def test_longvideobench(tmp_path: Path) -> None:
    found = measure(LONGVIDEOBENCH_VAL_V, lambda question: "The answer is A")
    assert (found["accuracy"], found["accuracy/15 s"], found["accuracy/600 s"], found["accuracy/TOS"]) == (
        0.25,
        0.5,
        0.0,
        0.5,
    )
    assert text_of(LONGVIDEOBENCH_VAL_V, tmp_path) == (
        "What moves?\nA. A circle.\nB. A square.\nC. A triangle.\nD. Nothing.\n"
        "Answer with the option's letter from the given choices directly.\n"
    )
    assert LONGVIDEOBENCH_TEST_V.submission is not None
    answered = [Answered(Question("test_0", ()), "A"), Answered(Question("test_1", ()), "(B)")]
    assert LONGVIDEOBENCH_TEST_V.submission.write(answered) == '{"test_0": "A", "test_1": "(B)"}'


def test_videomme_by_duration_domain_and_task(tmp_path: Path) -> None:
    task = BY_NAME["videomme-8"]
    measures = check_task(task, lambda question: "A")
    assert [found.group for found in measures] == [
        None,
        *(("duration", "short"), ("duration", "long")),
        *(("domain", "Knowledge"), ("domain", "Life Record")),
        *(("sub_category", "Law"), ("sub_category", "Food")),
        *(("task_type", "OCR Problems"), ("task_type", "Counting Problem"), ("task_type", "Object Reasoning")),
    ]
    assert [found.estimate.mean for found in measures[:3]] == [pytest.approx(1 / 3), 0.5, 0.0]
    assert text_of(task, tmp_path) == (
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n"
        "What moves?\nA. A circle.\nB. A square.\nC. A triangle.\nD. Nothing.\nThe best answer is:"
    )


def test_videomme_shows_the_subtitles_of_the_sampled_frames(tmp_path: Path) -> None:
    # At four frames per second, the lines are shown at frame 0, at none (from 2 to before 2), and at frame 3.
    text = str(text_of(BY_NAME["videomme_w_subtitle-8"], tmp_path))
    assert text.startswith(
        "This video's subtitles are listed below:\nIt starts.\nIt ends.\n"
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond"
    )
    without_a_file = str(text_of(BY_NAME["videomme_w_subtitle-8"], tmp_path, index=2))
    assert without_a_file.startswith(
        "Select the best answer to the following multiple-choice question based on the video. Respond"
    )


def test_subtitles_are_chosen_by_frame() -> None:
    mark = '<font color="white" size=".72c">{}</font>'
    text = (
        f"1\n00:00:00,000 --> 00:00:01,500\n{mark.format('one')}\n\n2\n00:01:00,000 --> "
        f"01:00:00,000\nnoise\n\n3\nshort\n"
    )
    assert parse_subtitles(text) == [Subtitle(0.0, 1.5, mark.format("one")), Subtitle(60.0, 3600.0, "noise")]
    lines = [
        Subtitle(0.0, 1.0, mark.format("a")),
        Subtitle(1.0, 2.0, mark.format("b")),
        Subtitle(3.0, 4.0, mark.format("c")),
    ]
    # Three of 40 frames at 10 fps: 0, 20 (19.5 is rounded to even) and 39.
    assert shown_subtitles(lines, 40, 10.0, 3) == ["a", "c"]
    assert shown_subtitles(lines, 40, 10.0, 1) == ["a"]
    assert shown_subtitles(lines, 0, 0.0, 8) == []
    assert shown_subtitles([Subtitle(0.0, 9.0, "unmarked")], 40, 10.0, 8) == []


def test_mlvu_averages_its_tasks(tmp_path: Path) -> None:
    assert measure(MLVU, lambda question: "A") == {
        "average": pytest.approx((1 / 3 + 1) / 2),
        "accuracy": 0.5,
        "accuracy/count": pytest.approx(1 / 3),
        "accuracy/ego": 1.0,
    }
    assert str(text_of(MLVU, tmp_path)).endswith("(D) Nothing.\nOnly give the best option.\nBest option: (")


def test_the_standard_error_of_a_macro_average() -> None:
    average = check_task(MLVU, lambda question: "A")[0].estimate
    assert average.n == 4
    assert str(average.standard_error) == "nan"  # each part has one video, so its error is unknown


def test_youcook2(tmp_path: Path) -> None:
    (question,) = as_questions(YOUCOOK2_VAL, YOUCOOK2_VAL.source.open(DataOptions(cache=tmp_path, fixtures=True)), 2)
    video, text = question.prompt
    assert isinstance(video, Video)
    assert len(video.load(2).frames) == 2
    assert text == "Provide a one-sentence caption for the provided video."
    assert (question.answer, question.cluster) == (["cut the bread into slices"], "bread")
