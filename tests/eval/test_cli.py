"""The command line, with a fake runner: flags to plan and options, outcomes to table, JSON and exit code."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vila_core.cli.progress import Progress
from vila_core.errors import ConfigError, PluginError, VilaError
from vila_core.plugins import loader as plugin_loader
from vila_eval.cli import running
from vila_eval.cli.arguments import cache_folder, read_frames, read_judge, read_prices, read_rank
from vila_eval.cli.main import app
from vila_eval.metric import Measure
from vila_eval.options import ModelOptions, Planned, Rank, RunOptions, TaskOutcome
from vila_eval.records.schema import (
    Counts,
    JudgeSummary,
    ModelIdentity,
    RunSettings,
    SampleRecord,
    TaskResult,
)
from vila_eval.records.storage import write_record, write_records
from vila_eval.report import tracking
from vila_eval.report.table import as_text, results_table, table_notes
from vila_eval.statistics import Estimate

PLUGIN = """
import json
from pathlib import Path
from vila_core import hookimpl
from vila_eval import LocalFiles, Question, Task

def ask(row):
    return Question(id=row["id"], prompt=[row["question"]], answer=row["answer"])

ROWS = Path(__file__).with_name("rows.jsonl")

@hookimpl
def vila_tasks():
    return [
        Task("acme/capitals", LocalFiles(ROWS, {"question": "string"}), ask, "exact_match", tags=("acme",)),
        Task("acme/films", LocalFiles(ROWS, {"question": "string"}), ask, "exact_match", tags=("acme",),
             has_video=True),
    ]
"""
ROW = {"id": "1", "question": "The capital of France?", "answer": "Paris"}


def result(name: str, *measures: Measure, counts: Counts | None = None, revision: str = "abc") -> TaskResult:
    return TaskResult(
        task=name,
        task_version=1,
        distribution="acme 1.0",
        model=ModelIdentity(name="tiny", source="embedded", digest="0"),
        settings=RunSettings(max_new_tokens=8),
        data={"revision": revision},
        metric="exact_match",
        measures=measures,
        counts=counts or Counts(samples=5),
    )


ACCURACY = Measure("accuracy", Estimate(0.805, 0.0123, 400, (0.782, 0.828)))


class Runs:
    """The fake runner: records its arguments and returns chosen outcomes."""

    def __init__(self) -> None:
        self.model = ModelOptions()
        self.plan: Sequence[Planned] = ()
        self.options: RunOptions | None = None
        self.rank: Rank | None = None
        self.outcome: Callable[[Planned, Path], TaskOutcome] = lambda planned, folder: TaskOutcome(
            planned, folder, waiting="scoring"
        )

    def evaluate(
        self, model: ModelOptions, plan: Sequence[Planned], options: RunOptions, progress: Progress, rank: Rank | None
    ) -> list[TaskOutcome]:
        self.model, self.plan, self.options, self.rank = model, plan, options, rank
        outcomes: list[TaskOutcome] = []
        for planned in plan:
            progress.start(planned.folder, 5, 2)
            progress.advance(3)
            progress.finish()
            outcomes.append(self.outcome(planned, options.output_dir / "tiny" / planned.folder))
        return outcomes

    @property
    def asked(self) -> RunOptions:
        assert self.options is not None, "nothing ran"
        return self.options


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    fake = Runs()
    monkeypatch.setattr(running, "evaluate", fake.evaluate)
    monkeypatch.setattr(plugin_loader, "_plugin_files", {})
    return fake


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "acme.py").write_text(PLUGIN)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path / "acme.py"


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    done = cli(*arguments)
    assert isinstance(done.exception, VilaError), done.output
    return str(done.exception)


def test_flags_become_options_in_both_spellings(runs: Runs, plugin: Path, tmp_path: Path) -> None:
    done = cli(
        *("-m", "NVILA-8B", "-c", "vicuna_v1", "--lora-path", "adapter", "--max_tiles", 6, "--device", "cpu"),
        *(
            "-t",
            "acme/films",
            "acme/capitals",
            "-nf",
            "8/16",
            "--nproc-per-node",
            2,
            "--batch-size",
            4,
            "--limit",
            3,
            "--force",
        ),
        *("--output-dir", tmp_path / "out", "--data", tmp_path, "--predict-only", "--plugin", plugin),
    )
    assert done.exit_code == 0, done.output
    assert runs.model == ModelOptions("NVILA-8B", lora="adapter", chat_template="vicuna_v1", device="cpu", max_tiles=6)
    assert [(one.folder, one.num_video_frames) for one in runs.plan] == [
        *(("acme/capitals", None), ("acme/films-8", 8), ("acme/films-16", 16))
    ]
    asked = runs.asked
    assert (asked.output_dir, asked.limit, asked.batch_size, asked.workers) == (tmp_path / "out", 3, 4, 2)
    assert (asked.phase, asked.force, asked.judge, asked.data.mirror) == ("predict", True, None, tmp_path)


def test_lists_can_be_words_commas_or_repeated_options(runs: Runs, plugin: Path) -> None:
    for spelling in (
        ["--tasks", "acme/capitals,acme/films"],
        ["--tasks", "acme/capitals", "--tasks=acme/films"],
        ["--tags-include", "acme"],
        ["-ti", "acme", "-te", "regression"],
    ):
        assert cli("--plugin", plugin, *spelling).exit_code == 0
        assert [one.folder for one in runs.plan] == ["acme/capitals", "acme/films"]


def test_contradicting_flags_are_rejected(runs: Runs) -> None:
    assert "--score-only" in refused("--tasks", "pope", "--predict-only", "--score-only")
    assert "--data" in refused("--tasks", "pope", "--fixtures", "--data", "mirror")
    assert "--judge-url" in refused("--tasks", "pope", "--judge-model", "gpt-4o")
    assert "No task is selected" in refused("--limit", "5")
    assert "Did you mean 'pope'" in refused("--tasks", "popee")
    assert runs.options is None


def test_frames_and_prices() -> None:
    assert read_frames(["8/16", "16,32"]) == [8, 16, 32]
    assert read_frames([]) is None
    for wrong in ("8/x", "0", "-1", "8.5"):
        with pytest.raises(ConfigError, match="--num_video_frames"):
            read_frames([wrong])
    assert read_prices("0.15/0.6") == (0.15, 0.6)
    for wrong in ("0.15", "a/b", "-1/2", "1/2/3", "nan/1"):
        with pytest.raises(ConfigError, match="--judge-price"):
            read_prices(wrong)


def test_the_judge_key_comes_from_the_environment() -> None:
    keys = {"OPENAI_API_KEY": "general", "VILA_JUDGE_API_KEY": "own"}
    url = "http://localhost:8000/v1"
    for environment, expected in ((keys, "own"), ({"OPENAI_API_KEY": "general"}, "general"), ({}, None)):
        judge = read_judge(url, None, 4, "1/2", environment)
        assert judge is not None
        assert (judge.base_url, judge.api_key, judge.concurrency, judge.prices) == (url, expected, 4, (1.0, 2.0))
    assert read_judge(None, None, 4, None, keys) is None


def test_the_cache_folder_comes_from_the_environment() -> None:
    assert cache_folder({"VILA_EVAL_CACHE": "/big", "XDG_CACHE_HOME": "/x"}) == Path("/big")
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/vila-eval")
    assert cache_folder({}) == Path.home() / ".cache" / "vila-eval"


def test_a_failed_task_is_reported_below_the_table_and_in_the_exit_code(runs: Runs, plugin: Path) -> None:
    def outcome(planned: Planned, folder: Path) -> TaskOutcome:
        if planned.task.name == "acme/films":
            return TaskOutcome(planned, folder, error="The dataset [acme] is not there.")
        return TaskOutcome(planned, folder, waiting="a judge")

    runs.outcome = outcome
    done = cli("--plugin", plugin, "--tasks", "acme")
    assert done.exit_code == 1
    assert "acme/capitals  waits for a judge" in done.stdout
    assert "acme/films     error" in done.stdout
    assert "acme/films: The dataset [acme] is not there." in done.stdout


def test_json_is_the_only_standard_output(runs: Runs, plugin: Path, tmp_path: Path) -> None:
    done = cli("--plugin", plugin, "--tasks", "acme/capitals", "--json", "--output-dir", tmp_path)
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "tasks": [
            {
                "task": "acme/capitals",
                "folder": str(tmp_path / "tiny/acme/capitals"),
                "result": None,
                "error": None,
                "waiting": "scoring",
            }
        ],
        "report": None,
    }


def test_an_interruption_says_how_to_continue(runs: Runs, plugin: Path) -> None:
    def outcome(planned: Planned, folder: Path) -> TaskOutcome:
        raise KeyboardInterrupt

    runs.outcome = outcome
    done = cli("--plugin", plugin, "--tasks", "acme/capitals")
    assert done.exit_code == 130
    assert "run the same command to continue" in done.stderr


def test_only_the_first_torchrun_process_prints(runs: Runs, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    for rank in (0, 1):
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        done = cli("--plugin", plugin, "--tasks", "acme/capitals")
        assert (done.exit_code, runs.rank) == (0, Rank(rank, 2, rank))
        printed.append(done.output)
    assert "waits for scoring" in printed[0]
    assert printed[1] == ""
    monkeypatch.delenv("RANK")
    cli("--plugin", plugin, "--tasks", "acme/capitals")
    assert runs.rank is None
    with pytest.raises(ConfigError, match="RANK=2, WORLD_SIZE=2"):
        read_rank({"RANK": "2", "WORLD_SIZE": "2"})


def test_results_go_to_the_tracker_which_is_checked_before_the_run(
    runs: Runs, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--plugin", plugin, "--tasks", "acme/capitals", "--output-dir", tmp_path, "--report-to", "wandb")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert "pip install 'vila-eval[wandb]'" in refused(*arguments)
    assert runs.options is None

    reported: list[tuple[str, Path]] = []
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    monkeypatch.setattr(running, "report_to", lambda kind, folder: reported.append((kind, folder)))

    def outcome(planned: Planned, folder: Path) -> TaskOutcome:
        found = result(planned.task.name, ACCURACY)
        write_record(folder / "results.json", found)
        samples = [SampleRecord(id=f"{n}", index=n, row=n, key="k", prompt=()) for n in range(found.counts.samples)]
        write_records(folder / "samples.jsonl", samples)
        return TaskOutcome(planned, folder, found)

    runs.outcome = outcome
    done = cli(*arguments)
    assert done.exit_code == 0, done.output
    assert reported == [("wandb", tmp_path / "tiny")]
    assert f"Report: {tmp_path / 'tiny' / 'report.html'}" in done.stdout


def test_table_shows_every_measure_over_all_samples_with_its_interval(tmp_path: Path) -> None:
    outcomes = [
        of_task(
            tmp_path,
            result(
                "pope",
                ACCURACY,
                Measure("yes_ratio", Estimate(0.5, math.nan, 400), higher_is_better=None),
                Measure("accuracy", Estimate(1.0, 0.0, 3), group=("category", "random")),
                counts=Counts(samples=400, unread=7),
            ),
        ),
        of_task(
            tmp_path,
            result("mme", Measure("perception", Estimate(1583.25, math.nan, 30), unit="points")),
        ),
    ]
    assert [line.split() for line in as_text(results_table(outcomes)).splitlines()] == [
        ["task", "measure", "value", "95", "%", "interval", "n", "failed", "unread"],
        ["pope", "accuracy", "80.5", "%", "78.2–82.8", "400", "0", "7"],
        ["yes", "ratio", "50.0", "%", "400"],
        ["mme", "perception", "1583.2", "30", "0", "0"],
    ]
    assert table_notes(outcomes) == []


def test_fixture_results_are_marked(tmp_path: Path) -> None:
    fake, real = (
        of_task(tmp_path, result("pope", ACCURACY, revision="fixture")),
        of_task(tmp_path, result("mme", ACCURACY)),
    )
    assert "1 of 2 tasks ran on made-up rows" in table_notes([fake, real])[0]
    assert "All tasks ran on made-up rows" in table_notes([fake])[0]


def of_task(folder: Path, found: TaskResult) -> TaskOutcome:
    from vila_eval import LocalFiles, Question, Task

    task = Task(found.task, LocalFiles("rows.jsonl", {}), lambda row: Question(row["id"], []), None)
    return TaskOutcome(Planned(task, found.task), folder / "tiny" / found.task, found)


def test_list_describes_tasks_and_their_distribution(runs: Runs, plugin: Path) -> None:
    listed = json.loads(cli("list", "--json", "--plugin", plugin).stdout)["tasks"]
    by_name = {row["task"]: row for row in listed}
    assert by_name["pope"]["data"] == "lmms-lab/POPE (test)"
    assert (by_name["pope"]["metric"], by_name["pope"]["distribution"], by_name["pope"]["video"]) == (
        "pope",
        "vila-eval",
        False,
    )
    assert (by_name["acme/films"]["distribution"], by_name["acme/films"]["video"]) == (str(plugin), True)
    table = cli("list", "--tags", "acme").stdout
    assert "acme/capitals" in table
    assert "pope" not in [line.split()[0] for line in table.splitlines() if line]
    assert "exact_match" in cli("list", "--metrics").stdout
    assert "Unknown tag 'acmee'" in refused("list", "--tags", "acmee")


def test_list_reports_objects_that_are_not_tasks(runs: Runs, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from vila_core import hookimpl\nclass Odd:\n    name = 'odd'\n@hookimpl\ndef vila_tasks():\n    return "
        "[Odd()]\n"
    )
    listed = cli("--plugin", broken, "list")
    assert listed.exit_code == 0
    assert "registers the task 'odd', which is a Odd" in listed.stdout
    assert "which is a Odd" in refused("--plugin", broken, "--tasks", "odd")


def test_a_plugin_file_that_fails_is_named(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    done = cli("--plugin", tmp_path / "bad.py", "list")
    assert isinstance(done.exception, PluginError)
    assert "nothing_of_this_name" in str(done.exception)


def test_dry_run_prints_the_prompts_and_loads_no_model(runs: Runs, plugin: Path, tmp_path: Path) -> None:
    done = cli(
        "--plugin", plugin, "--tasks", "acme/capitals,pope", "--fixtures", "--dry-run", "--output-dir", tmp_path / "out"
    )
    assert "acme/capitals: " in done.stdout
    assert runs.options is None
    prompt = done.stdout[done.stdout.index("pope: 6 rows of lmms-lab/POPE (test), at most") :]
    assert (
        "| [image]\n  | Is there a circle in the image?\n  | Answer the question using a single word or phrase.\n"
        in prompt
    )
    assert "reference: yes" in prompt
    assert (tmp_path / "out" / "dry-run.png").read_bytes().startswith(b"\x89PNG")


RATED = """
from vila_core import hookimpl
from vila_eval import JudgeMetric, LocalFiles, Question, Task

def ask(row):
    return Question(row["id"], [row["question"]], row["answer"])

RATING = JudgeMetric("rating", "A: {answer}", scale=(0, 10), judge_model="judge-1")

@hookimpl
def vila_tasks():
    return [Task("acme/rated", LocalFiles("rows.jsonl", {"question": "string"}), ask, RATING, max_new_tokens=8)]
"""


def test_a_dry_run_of_a_judged_task_estimates_the_judging(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rated.py").write_text(RATED)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(ROW | {"id": str(number)}) + "\n" for number in range(3)))

    def judging(*arguments: object) -> str:
        done = cli("--plugin", "rated.py", "-t", "acme/rated", "--dry-run", *arguments)
        return next(line.strip() for line in done.stdout.splitlines() if "judging: " in line)

    # Nothing is answered yet: "A: " and 8 tokens of 4 characters, three times.
    assert judging() == "judging: 3 requests to judge-1: about 26 tokens, at most 1,536 in reply"
    priced = judging(
        "--limit", 1, "--judge-url", "http://localhost:1/v1", "--judge-model", "judge-2", "--judge-price", "1000/20"
    )
    assert priced == "judging: 1 request to judge-2: about 8 tokens, at most 512 in reply, at most about $0.02"
    samples = [
        SampleRecord(id=str(number), index=number, row=number, key="k", prompt=(), answer="Paris")
        for number in range(2)
    ]
    write_records(tmp_path / "results/vila-tiny/acme/rated/samples.jsonl", samples)
    assert judging() == "judging: 3 requests to judge-1: about 12 tokens, at most 1,536 in reply"
    assert runs.options is None


def test_the_cost_of_judging_is_below_the_table(tmp_path: Path) -> None:
    outcomes = [of_task(tmp_path, result(name, ACCURACY)) for name in ("mmvet", "llava", "pope")]
    for outcome, requests in zip(outcomes, (1200, 30), strict=False):
        summary = JudgeSummary(
            model="judge-1",
            samples=60,
            failed=2,
            requests=requests,
            reused=4,
            prompt_tokens=10_000,
            completion_tokens=500,
            dollars=0.125,
        )
        write_record(outcome.folder / "judge.json", summary)
    assert table_notes(outcomes) == [
        "Judge judge-1, in all runs: 1,230 requests, 20,000 tokens and 1,000 in reply, $0.25; "
        "stored replies used: 8; samples without a verdict: 4."
    ]


def test_vila_eval_is_also_a_command_of_vila(runs: Runs, plugin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from vila_core.cli.main import main

    with pytest.raises(SystemExit) as exit_:
        main(["eval", "--plugin", str(plugin), "--tasks", "acme/capitals", "acme/films", "--limit", "1"])
    assert exit_.value.code == 0
    assert [one.folder for one in runs.plan] == ["acme/capitals", "acme/films"]
    assert "waits for scoring" in capfd.readouterr().out
