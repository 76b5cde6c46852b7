"""Benchmarks: a task says where its rows come from, how to ask about a row, and how to score the answers.

from vila_core import hookimpl
from vila_eval import HubDataset, Question, Task

def ask(row):
    return Question(id=row["id"], prompt=[row["image"], row["question"]], answer=row["answer"])

SHAPES = Task("shapes", HubDataset("acme/shapes", "test", {"id": "string", …}), ask, metric="exact_match")

@hookimpl
def vila_tasks():
    return [SHAPES]
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vila_core.errors import PluginError, VilaError
from vila_core.media import Image, Video
from vila_core.media.sources import is_data_uri, is_url
from vila_core.plugins.lazy import lazy_function
from vila_eval.errors import describe_exception
from vila_eval.texts import escape_all, escape_surrogates

if TYPE_CHECKING:
    from vila_core.runtime import Vila
    from vila_eval.data.sources import Rows, Source
    from vila_eval.metric import AnyMetric, Submission

Row = Mapping[str, Any]
"""A dataset row, by column. Images are `vila_core.Image`s and videos `vila_core.Video`s, not decoded yet."""

Part = str | Image | Video

_open_evaluator = lazy_function("vila_eval.running.in_training:open_evaluator")


@dataclass(frozen=True)
class Question:
    """One sample: the prompt for the model, and what scoring needs. Everything except the prompt must be JSON.

    Attributes:
        id: unique within the task, and the same in every run. If the data has none, leave it empty: the row's number is
            used, or "<row>-<number>" if a row gives several questions.
        prompt: text, images and videos in order. Entries that are None (an optional image) are skipped. Relative paths
            of images and videos are looked up among the dataset's own files.
        answer: the reference, in the form that the metric takes (a text, a list of texts, a box); None if it is hidden.
        options: the texts to choose from, in order.
        groups: breakdowns to report, such as `{"category": "Art"}`.
        cluster: what several questions share (an image, a video), for clustered standard errors.
        fields: anything else that the metric or the submission file needs.
    """

    id: str
    prompt: Sequence[Part | None]
    answer: Any = None
    options: Sequence[str] = ()
    groups: Mapping[str, str] = field(default_factory=dict[str, str])
    cluster: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Task:
    """A benchmark. Register one with the hook `vila_tasks`.

    Attributes:
        name: the name that users type.
        source: where the rows come from.
        ask: turns a row into one question or several.
        metric: a metric, or the name of a registered one; None if the answers are scored elsewhere.
        version: raise it with every change that may change a score. Results of different versions are never mixed.
        tags: for `--tags-include`, `--tags-exclude` and `--tasks`.
        max_new_tokens: length limit of an answer, in tokens.
        stop: texts that end an answer.
        num_video_frames: frames per video, if the benchmark defines it; None: the user decides.
        has_video: whether `--num_video_frames` applies.
        keep_together: a column; `--limit` never separates rows with equal values in it (MME asks in pairs).
        submission: the file for the benchmark's server.
        description: one line.
        url: where the benchmark is described.
        respond: for tasks that do not ask for text, such as drawing: takes a batch of questions and returns a model's
            answer to each, which is stored and scored. None: the model generates text.
    """

    name: str
    source: Source
    ask: Callable[[Row], Question | Sequence[Question]]
    metric: AnyMetric | str | None
    version: int = 1
    tags: Sequence[str] = ()
    max_new_tokens: int = 32
    stop: Sequence[str] = ()
    num_video_frames: int | None = None
    has_video: bool = False
    keep_together: str | None = None
    submission: Submission | None = None
    description: str = ""
    url: str = ""
    respond: Callable[[Vila, Sequence[Question]], Sequence[str]] | None = None

    def evaluator(
        self, cache: Path, *, limit: int | None = None, mirror: Path | None = None, offline: bool = False
    ) -> Callable[[Vila], Mapping[str, float]]:
        """Open the data, and return a function that scores a loaded model and returns its measures by name.

        For evaluation inside training: nothing is written, and nothing is resumed.

        Args:
            cache: folder for downloads.
            limit: number of rows; None: all.
            mirror: folder with copies of hub repositories, as `--data-dir` of `vila-eval`.
            offline: download nothing.

        Raises:
            ConfigError: the task needs a judge, or its answers are scored elsewhere.
            DataError: the data is missing, empty, or has other columns.
        """
        return _open_evaluator(self, cache, limit=limit, mirror=mirror, offline=offline)


def as_questions(task: Task, rows: Rows, index: int) -> list[Question]:
    """Return the questions of a row, with ids set, None parts removed and relative media paths resolved.

    Raises:
        PluginError: the task's `ask` fails on the row.
    """
    with plugin_errors(f"Row {index} of task '{task.name}' cannot be read"):
        row = rows[index]
    with plugin_errors(f"Task '{task.name}' cannot ask row {index}"):
        asked = task.ask(row)
        questions = [asked] if isinstance(asked, Question) else list(asked)
        ids = [str(index)] if len(questions) == 1 else [f"{index}-{number}" for number in range(len(questions))]
        return [_completed(question, row_id, rows) for question, row_id in zip(questions, ids, strict=True)]


def _completed(question: Question, row_id: str, rows: Rows) -> Question:
    """Return a question as it can be stored: with an id, located media, and lone surrogates escaped."""
    if not isinstance(question, Question):  # pyright: ignore[reportUnnecessaryIsInstance] (a plugin's code)
        raise TypeError(f"expected a Question, got {type(question).__name__}")
    given: object = cast("object", question.id)  # a number, if a data file has numbers as ids
    texts = cast(
        "dict[str, Any]",
        escape_all({name: getattr(question, name) for name in ("answer", "options", "groups", "cluster", "fields")}),
    )
    return replace(
        question,
        id=row_id if given is None or given == "" else escape_surrogates(str(given)),
        prompt=[_located(part, rows) for part in question.prompt if part is not None],
        **texts,
    )


@contextmanager
def plugin_errors(what: str, *passed: type[Exception]) -> Generator[None]:
    """Turn exceptions of a benchmark's own code into a `PluginError` that says where, so that other tasks continue.

    A `VilaError`, Ctrl-C and the exception types in `passed` are not changed.
    """
    try:
        yield
    except (VilaError, KeyboardInterrupt, *passed):
        raise
    except BaseException as error:  # also SystemExit: a plugin does not end the program
        raise PluginError(f"{what}: {describe_exception(error)}") from error


def _located(part: Part, rows: Rows) -> Part:
    if isinstance(part, str):
        return escape_surrogates(part)
    if not isinstance(part, Image | Video):  # pyright: ignore[reportUnnecessaryIsInstance] (a plugin's code)
        raise TypeError(f"a part of the prompt is of type {type(part).__name__}; expected text, Image or Video")
    if not isinstance(part.source, str | Path) or is_url(str(part.source)) or is_data_uri(str(part.source)):
        return part
    path = rows.locate(str(part.source))
    return Image(path) if isinstance(part, Image) else Video(path, frames=part.frames, fps=part.fps)


def resolve_metric(task: Task) -> AnyMetric | None:
    """Return a task's metric. Raises `ConfigError` if no plugin registers a metric of its name."""
    if not isinstance(task.metric, str):
        return task.metric
    from vila_core.plugins.loader import load_plugins

    return cast("AnyMetric", load_plugins().metrics.get(task.metric))
