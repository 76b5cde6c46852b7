"""The drawing task: descriptions are drawn in batches and read from the pixels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import PIL.Image
import pytest

import vila_core as vila
from vila_core.cli.progress import NoProgress
from vila_core.errors import ConfigError, MediaError, PluginError
from vila_core.media import Image
from vila_core.plugins.loader import load_plugins
from vila_core.runtime import Vila
from vila_eval.data.sources import DataOptions
from vila_eval.metric import Scored
from vila_eval.metrics.drawn_attributes import DRAWN_ATTRIBUTES
from vila_eval.options import ModelOptions, Planned, RunOptions
from vila_eval.running.answering import respond_each
from vila_eval.running.runner import evaluate
from vila_eval.task import Question, as_questions
from vila_eval.tasks.drawing import DRAWING_TASKS, SOURCE, draw

(TASK,) = DRAWING_TASKS
COUNT = 12


def questions(tmp_path: Path) -> list[Question]:
    rows = SOURCE.open(DataOptions(tmp_path))
    return [question for index in range(COUNT) for question in as_questions(TASK, rows, index)]


class Painter:
    """Stands for a model that draws the pictures of another split's or its own descriptions."""

    def __init__(self, pictures: Sequence[PIL.Image.Image]):
        self.pictures = pictures
        self.batches: list[Sequence[str]] = []

    def generate_image_batch(self, prompts: Sequence[str], *, seed: int) -> Sequence[PIL.Image.Image]:
        assert seed == 0
        start = sum(map(len, self.batches))
        self.batches.append(prompts)
        return self.pictures[start : start + len(prompts)]


def right_pictures() -> list[PIL.Image.Image]:
    """What the descriptions describe, as the world draws it, in the size of a small model."""
    from vila_train.tiny.world import make_sample
    from vila_train.tiny.world.drawing import draw as draw_scene

    samples = [make_sample("test", "draw_things", index) for index in range(COUNT)]
    return [draw_scene(sample.scenes[-1]).resize((64, 64)) for sample in samples]


def measures(asked: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    scored = [Scored(one, text, DRAWN_ATTRIBUTES.score(text, one)) for one, text in zip(asked, answers, strict=True)]
    return {measure.name: measure.value for measure in DRAWN_ATTRIBUTES.summarize(scored) if measure.group is None}


def test_right_pictures_get_all_attributes(tmp_path: Path):
    asked, painter = questions(tmp_path), Painter(right_pictures())
    found = measures(asked, draw(cast("Vila", painter), asked))
    assert [*found] == ["attributes", "color", "shape", "position", "count", "all right"]
    assert all(value == 1 for value in found.values()), found
    assert [len(batch) for batch in painter.batches] == [COUNT]
    assert "(" in painter.batches[0][0], "descriptions state positions"


def test_pictures_of_other_descriptions_get_few(tmp_path: Path):
    asked, pictures = questions(tmp_path), right_pictures()
    found = measures(asked, draw(cast("Vila", Painter([*pictures[1:], pictures[0]])), asked))
    assert found["attributes"] < 0.5
    assert found["all right"] == 0


def test_empty_pictures_get_none(tmp_path: Path):
    asked = questions(tmp_path)
    found = measures(asked, draw(cast("Vila", Painter([PIL.Image.new("RGB", (64, 64), "white")] * COUNT)), asked))
    assert set(found.values()) == {0}


UNREADABLE = (
    "",
    "{}",
    "[1]",
    "[" * 3000,
    '{"color": [1, 0]}',
    '{"color": 3}',
    '{"color": [2, 1]}',
    '{"color": [1e999, 1]}',
)


@pytest.mark.parametrize("answer", UNREADABLE)
def test_pictures_that_failed_score_nothing(answer: str):
    score = DRAWN_ATTRIBUTES.score(answer, Question("1", []))
    assert set(score.values.values()) == {0}
    assert score.unread


def test_descriptions_are_held_out(tmp_path: Path):
    from vila_train.tiny.world import make_sample
    from vila_train.tiny.world.combinations import objects_of

    held_out = {" ".join(pair) for pair in objects_of("test")}
    assert all(any(name in str(one.answer) for name in held_out) for one in questions(tmp_path))
    for index in range(300):
        sample = make_sample("train", "draw_things", index)
        assert not any(name in sample.question for name in held_out)


def test_a_model_that_draws_is_asked_in_batches(tiny_u: Path, tmp_path: Path):
    options = RunOptions(tmp_path / "results", DataOptions(tmp_path / "cache"), batch_size=2, limit=3)
    model = ModelOptions(path=str(tiny_u), device="cpu")
    (outcome,) = evaluate(model, [Planned(TASK, TASK.name)], options, NoProgress())
    assert outcome.result is not None
    whole = {measure.name: measure for measure in outcome.result.measures if measure.group is None}
    assert whole["attributes"].n == 3
    assert 0 <= whole["attributes"].value <= 0.5, "random weights"


def test_models_without_a_head(tmp_path: Path):
    with pytest.raises(ConfigError, match="no generation head"):
        TASK.evaluator(tmp_path, limit=1)(vila.load("vila-tiny", device="cpu"))


def test_the_dataset_is_registered_and_compares():
    sample = load_plugins().datasets.get("drawn-world-drawings").sample("test", "draw_things", 0)
    assert sample.compare is not None
    assert sample.compare(right_pictures()[0])["count"] == (1, 1)


def test_one_unreadable_picture_does_not_fail_its_batch():
    def respond(model: Vila, asked: Sequence[Question]) -> Sequence[str]:
        del model
        if any(question.id == "bad" for question in asked):
            raise MediaError("cannot be read")
        return [question.id for question in asked]

    asked = [Question(name, []) for name in ("a", "bad", "c")]
    first, second, third = respond_each(cast("Vila", None), respond, asked)
    assert (first, third) == ("a", "c")
    assert isinstance(second, MediaError)


def test_too_few_answers_are_a_fault_of_the_task():
    with pytest.raises(PluginError, match="0 answers to 1 questions"):
        respond_each(cast("Vila", None), lambda *_: [], [Question("a", [Image("x.png")])])


def test_answers_are_json(tmp_path: Path):
    (first, *_) = draw(cast("Vila", Painter(right_pictures())), questions(tmp_path)[:1])
    assert set(json.loads(first)) == {"color", "shape", "position", "count"}
