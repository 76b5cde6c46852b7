"""The reconstruction task: pictures through an image tokenizer and back, scored without any text."""

import json
from pathlib import Path

import pytest

import vila_core as vila
from vila_core.cli.progress import NoProgress
from vila_core.errors import ConfigError
from vila_eval.data.sources import DataOptions
from vila_eval.metric import Scored
from vila_eval.metrics.reconstruction import RECONSTRUCTION
from vila_eval.options import ModelOptions, Planned, RunOptions
from vila_eval.running.runner import evaluate
from vila_eval.task import Question
from vila_eval.tasks.reconstruction import RECONSTRUCTION_TASKS

(TASK,) = RECONSTRUCTION_TASKS


def test_a_run_writes_codes_and_measures(tiny_u: Path, tmp_path: Path):
    options = RunOptions(tmp_path, DataOptions(tmp_path / "cache"), batch_size=2, limit=3)
    model = ModelOptions(path=str(tiny_u), device="cpu")
    (outcome,) = evaluate(model, [Planned(TASK, TASK.name)], options, NoProgress())
    assert outcome.result is not None
    measures = {(measure.name, measure.group): measure for measure in outcome.result.measures}
    assert measures["psnr", None].n == 3
    assert 0 < measures["psnr", None].value < 100
    assert -1 <= measures["ssim", None].value <= 1
    assert {group for name, group in measures if name == "perplexity"} == {("depth", str(d)) for d in range(4)}
    assert measures["codes used", ("depth", "0")].value <= 3 * 16
    assert measures["perplexity", ("depth", "0")].value <= measures["codes used", ("depth", "0")].value


def test_inside_training(tiny_u: Path, tmp_path: Path):
    found = TASK.evaluator(tmp_path, limit=2)(vila.load(tiny_u, device="cpu"))
    assert 0 < found["psnr"] < 100


def test_models_without_codes(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not make codes"):
        TASK.evaluator(tmp_path, limit=1)(vila.load("vila-tiny", device="cpu"))


UNREADABLE = (
    *("", "B", "{}", "[1]", '{"psnr": 1}', "[" * 3000),
    *(
        json.dumps({"psnr": 20.0, "ssim": 0.5, "codebook_size": 8, "codes": [[1, 0]]} | wrong)
        for wrong in (
            {"psnr": None},
            {"psnr": float("nan")},
            {"ssim": "much"},
            {"codebook_size": float("inf")},
            {"codes": [[1, 8]]},
            {"codes": [[-1, 0]]},
            {"codes": [[1], [0, 1]]},
            {"codes": []},
            {"codes": [[10**30]]},
        )
    ),
)


@pytest.mark.parametrize("answer", UNREADABLE)
def test_pictures_that_failed_score_nothing(answer: str):
    score = RECONSTRUCTION.score(answer, Question("1", []))
    assert score.values == {"psnr": 0, "ssim": 0}
    assert score.unread
    measures = RECONSTRUCTION.summarize([Scored(Question("1", []), answer, score)])
    assert [measure.name for measure in measures] == ["psnr", "ssim"]


def test_codes_are_counted_over_all_pictures():
    def scored(code: int) -> Scored:
        answer = json.dumps({"psnr": 20.0, "ssim": 0.5, "codebook_size": 8, "codes": [[code, 0]]})
        question = Question(str(code), [])
        return Scored(question, answer, RECONSTRUCTION.score(answer, question))

    values = {(one.name, one.group): one.value for one in RECONSTRUCTION.summarize([scored(code) for code in range(4)])}
    assert values["codes used", ("depth", "0")] == 4
    assert values["perplexity", ("depth", "0")] == pytest.approx(4)
    assert values["codes used", ("depth", "1")] == 1
    assert values["psnr", None] == 20
