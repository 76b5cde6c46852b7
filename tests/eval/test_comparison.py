"""Two runs compared: numbers worked out by hand, and runs that must not be compared."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vila_eval.cli.main import main
from vila_eval.errors import ResultsError
from vila_eval.metric import Measure, exact, mean_measures
from vila_eval.records.schema import Counts, ModelIdentity, RunSettings, SampleRecord, TaskResult
from vila_eval.records.storage import RESULTS, SAMPLES, write_record, write_records
from vila_eval.report.comparison import compare_runs
from vila_eval.report.comparison_page import write_comparison


def write_task(
    folder: Path,
    values: Mapping[str, float | None],
    *,
    clusters: Sequence[str] | None = None,
    answers: Mapping[str, str] | None = None,
    extra: Sequence[Measure] = (),
    higher_is_better: bool = True,
    settings: RunSettings | None = None,
    references: Mapping[str, str] | None = None,
    **fields: Any,
) -> Path:
    """Write a task's results: an accuracy by sample id, None for a sample that was not judged."""
    samples = [
        SampleRecord(
            id=name,
            index=index,
            row=index,
            key="k",
            prompt=(),
            answer=(answers or {}).get(name, f"answer {name}"),
            reference=(references or {}).get(name, "right"),
            cluster=clusters[index] if clusters else None,
            values=None if value is None else {"accuracy": value},
            judge_error="no verdict" if value is None else None,
        )
        for index, (name, value) in enumerate(values.items())
    ]
    scored = [sample.scored for sample in samples if sample.values is not None]
    measures = [*mean_measures(scored, higher_is_better=higher_is_better), *extra]
    given = {"task": "shapes", "task_version": 1, "data": {"revision": "abc"}, "metric": "accuracy"} | fields
    result = TaskResult(
        distribution="test",
        model=ModelIdentity(name=folder.parts[-2], source="here", digest="d"),
        settings=settings or RunSettings(max_new_tokens=8),
        measures=tuple(measures),
        counts=Counts(samples=len(samples)),
        **given,
    )
    write_records(folder / SAMPLES, samples)
    write_record(folder / RESULTS, result)
    return folder


FIRST = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0}
SECOND = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}


def test_difference_error_and_flips_by_hand(tmp_path: Path) -> None:
    write_task(tmp_path / "one/shapes", FIRST, answers={"b": "wrong"})
    write_task(tmp_path / "two/shapes", SECOND, answers={"b": "right"})
    found = compare_runs(tmp_path / "one", tmp_path / "two")
    (task,) = found.tasks
    assert (found.first.name, found.second.name, task.task, task.paired) == ("one", "two", "shapes", 4)
    headline = task.headline
    assert headline is not None
    assert (headline.first, headline.second, headline.difference) == (0.5, 0.75, 0.25)
    # Differences 0 1 1 -1, mean 1/4, squares of deviations (1 + 9 + 9 + 25)/16 = 2.75; /3 /4.
    assert headline.standard_error == pytest.approx(math.sqrt(2.75 / 12))
    assert headline.p_value == 1.0  # two of three differing samples are no evidence (the exact sign test)
    assert task.adjusted_p_value == headline.p_value
    assert (headline.gained, headline.lost) == (2, 1)
    assert [(flip.id, flip.first, flip.second) for flip in task.flips] == [("b", 0, 1), ("c", 0, 1), ("d", 1, 0)]
    assert (task.flips[0].first_answer, task.flips[0].second_answer, task.flips[0].reference) == (
        "wrong",
        "right",
        "right",
    )


def test_questions_about_one_picture_count_together(tmp_path: Path) -> None:
    write_task(tmp_path / "one/shapes", FIRST, clusters="ppqq")
    write_task(tmp_path / "two/shapes", SECOND, clusters="ppqq")
    headline = compare_runs(tmp_path / "one", tmp_path / "two").tasks[0].headline
    # The pictures' mean differences are 1/2 and 0; half of the distance is the standard error of the mean of both.
    assert headline is not None
    assert headline.standard_error == pytest.approx(0.25)


def test_samples_of_one_side_and_unjudged_ones_are_left_out_and_counted(tmp_path: Path) -> None:
    write_task(
        tmp_path / "one/shapes",
        {"a": 1.0, "b": 0.0, "c": None, "d": 1.0},
        settings=RunSettings(max_new_tokens=8, limit=4),
    )
    write_task(tmp_path / "two/shapes", {"e": 0.0, "b": 1.0, "c": 1.0, "d": 1.0, "f": 0.0})
    (task,) = compare_runs(tmp_path / "one/shapes", tmp_path / "two/shapes").tasks
    assert (task.paired, task.only_first, task.only_second, task.unjudged) == (2, 1, 2, 1)
    assert task.headline is not None
    assert (task.headline.first, task.headline.second) == (0.5, 1.0)  # of b and d alone
    assert task.differences == ("limit: 4, none",)
    assert task.notes[1:] == [
        "left out: 1 samples only in A, 2 only in B.",
        "left out: 1 not judged in one of the runs.",
    ]


def test_a_score_of_the_whole_has_a_difference_but_no_test(tmp_path: Path) -> None:
    write_task(tmp_path / "one/shapes", FIRST, extra=[Measure("f1", exact(0.4, 4))])
    write_task(tmp_path / "two/shapes", SECOND, extra=[Measure("f1", exact(0.7, 4))])
    measure = compare_runs(tmp_path / "one", tmp_path / "two").tasks[0].measures[1]
    assert (measure.name, measure.difference) == ("f1", pytest.approx(0.3))
    assert (measure.p_value, measure.standard_error, measure.gained) == (None, None, None)


def test_a_measure_named_as_a_value_but_not_its_mean_has_no_test(tmp_path: Path) -> None:
    for name, values in (("one", FIRST), ("two", SECOND)):
        folder = write_task(tmp_path / name / "shapes", values)
        path = folder / RESULTS
        path.write_text(
            path.read_text().replace('"value": 0.5', '"value": 3.5').replace('"value": 0.75', '"value": 4.5')
        )
    measure = compare_runs(tmp_path / "one", tmp_path / "two").tasks[0].measures[0]
    assert (measure.first, measure.second, measure.p_value) == (3.5, 4.5, None)


def test_lower_is_better_turns_gains_around(tmp_path: Path) -> None:
    write_task(tmp_path / "one/shapes", FIRST, higher_is_better=False)
    write_task(tmp_path / "two/shapes", SECOND, higher_is_better=False)
    headline = compare_runs(tmp_path / "one", tmp_path / "two").tasks[0].headline
    assert headline is not None
    assert (headline.gained, headline.lost, headline.difference) == (1, 2, 0.25)


def test_one_sample_has_no_test(tmp_path: Path) -> None:
    write_task(tmp_path / "one/shapes", {"a": 0.0})
    write_task(tmp_path / "two/shapes", {"a": 1.0})
    task = compare_runs(tmp_path / "one", tmp_path / "two").tasks[0]
    assert task.headline is not None
    assert (task.headline.difference, task.headline.p_value, task.adjusted_p_value) == (1.0, None, None)


def test_p_values_are_adjusted_over_the_tasks(tmp_path: Path) -> None:
    for task in ("shapes", "deep/colors", "only"):
        write_task(tmp_path / "one" / task, FIRST, task=task)
    for task in ("shapes", "deep/colors"):
        write_task(tmp_path / "two" / task, SECOND, task=task)
    found = compare_runs(tmp_path / "one", tmp_path / "two")
    assert [task.task for task in found.tasks] == ["deep/colors", "shapes"]
    assert found.only_first == ("only",)
    for task in found.tasks:
        assert task.headline is not None
        assert task.headline.p_value is not None
        assert task.adjusted_p_value == pytest.approx(min(1.0, 2 * task.headline.p_value))
    assert "Only in A: only." in found.notes


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task_version": 2}, "version: 1, 2"),
        ({"data": {"revision": "def"}}, "data revision: abc, def"),
        ({"judge": "gpt"}, "judge: none, gpt"),
        ({"settings": RunSettings(max_new_tokens=8, num_video_frames=32)}, "num_video_frames: none, 32"),
    ],
)
def test_runs_of_different_things_are_refused_and_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    write_task(tmp_path / "one/shapes", FIRST)
    write_task(tmp_path / "two/shapes", SECOND, **change)
    with pytest.raises(ResultsError, match=named):
        compare_runs(tmp_path / "one", tmp_path / "two")
    (task,) = compare_runs(tmp_path / "one", tmp_path / "two", allow_different=True).tasks
    assert task.differences == (named,)
    assert any(named in note for note in task.notes)


def test_a_template_belongs_to_its_model(tmp_path: Path) -> None:
    write_task(tmp_path / "one/shapes", FIRST, settings=RunSettings(max_new_tokens=8, chat_template="vicuna_v1"))
    write_task(tmp_path / "two/shapes", SECOND)
    assert compare_runs(tmp_path / "one", tmp_path / "two").tasks[0].differences == ("chat_template: vicuna_v1, none",)


def test_bad_folders(tmp_path: Path) -> None:
    write_task(tmp_path / "one/shapes", FIRST)
    write_task(tmp_path / "two/colors", {"z": 1.0}, task="colors")
    write_task(tmp_path / "three/shapes", FIRST, references={"a": "left"})
    with pytest.raises(ResultsError, match="no results in"):
        compare_runs(tmp_path / "one", tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="two folders of the same kind"):
        compare_runs(tmp_path / "one", tmp_path / "one/shapes")
    with pytest.raises(ResultsError, match=r"No task is in both.*shapes.*colors"):
        compare_runs(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ResultsError, match="no sample is in both"):
        compare_runs(tmp_path / "one/shapes", tmp_path / "two/colors", allow_different=True)
    with pytest.raises(ResultsError, match=r"references of 1 of 4 samples differ.*'a'"):
        compare_runs(tmp_path / "one", tmp_path / "three")


def test_page_escapes_answers_and_is_the_same_each_time(tmp_path: Path) -> None:
    write_task(tmp_path / "one/shapes", FIRST, answers={"b": "<script>alert(1)</script>"})
    write_task(tmp_path / "two/shapes", SECOND)
    comparison = compare_runs(tmp_path / "one", tmp_path / "two")
    page = write_comparison(comparison, tmp_path / "page.html").read_bytes()
    assert b"<script" not in page
    assert b"&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert b"+25.0" in page
    assert write_comparison(comparison, tmp_path / "again.html").read_bytes() == page


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    """Return the exit code, standard output and standard error of `vila-eval`."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


def test_the_command_prints_numbers_flips_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    first = write_task(tmp_path / "one/shapes", FIRST, answers={"b": "[bold]wrong[/bold]"})
    second = write_task(tmp_path / "two/shapes", SECOND)
    code, out, _ = run(
        capsys, "compare", str(first), str(second), "--flips", "2", "--html", str(tmp_path / "page.html")
    )
    assert code == 0
    (row,) = [line.split() for line in out.splitlines() if line.startswith("shapes  ")]
    assert row == ["shapes", "accuracy", "50.0", "75.0", "+25.0", "±", "47.9", "1.000", "1.000", "2/1", "4"]
    assert "showing 2 of 3 samples scored differently" in out
    assert "[bold]wrong[/bold]" in out
    assert "answer d" not in out
    assert (tmp_path / "page.html").is_file()

    code, out, _ = run(capsys, "compare", str(first), str(second), "--json")
    found = json.loads(out)
    assert (code, found["tasks"][0]["measures"][0]["difference"], len(found["tasks"][0]["flips"])) == (0, 0.25, 3)


def test_commands_name_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(tmp_path / "one/shapes", FIRST)
    write_task(tmp_path / "two/shapes", SECOND, task_version=2)
    code, out, error = run(capsys, "compare", str(tmp_path / "one"), str(tmp_path / "two"))
    assert (code, out) == (2, "")
    assert "version: 1, 2" in " ".join(error.split())
    assert run(capsys, "compare", str(tmp_path / "one"), str(tmp_path / "two"), "--allow-different")[0] == 0
    code, _, error = run(capsys, "report", str(tmp_path / "nowhere"))
    assert (code, "no results" in error) == (2, True)


def test_the_report_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(tmp_path / "one/shapes", FIRST)
    assert run(capsys, "report", str(tmp_path / "one")) == (0, f"{tmp_path / 'one/report.html'}\n", "")
    assert (tmp_path / "one/report.html").is_file()


def test_unscored_tasks_are_listed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = write_task(tmp_path / name / "shapes", FIRST)
        result = TaskResult.model_validate_json((folder / RESULTS).read_text())
        write_record(folder / RESULTS, result.model_copy(update={"measures": (), "metric": None}))
    comparison = compare_runs(tmp_path / "one", tmp_path / "two")
    assert comparison.tasks[0].measures == ()
    assert "scored elsewhere" in write_comparison(comparison, tmp_path / "page.html").read_text()
