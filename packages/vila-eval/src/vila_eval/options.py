"""Options of a run, set on the command line or in a script."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vila_eval.data.sources import DataOptions
from vila_eval.records.schema import TaskResult
from vila_eval.task import Task


@dataclass(frozen=True)
class ModelOptions:
    """The model that answers, and how to load it; see `vila_core.load`.

    Attributes:
        path: folder or hub id; None is the embedded model.
        name: name of the results folder; None: the last part of the model's or the adapter's path.
        max_tiles: maximum number of tiles per image; None: the model's default.
    """

    path: str | None = None
    name: str | None = None
    lora: str | None = None
    chat_template: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_tiles: int | None = None
    revision: str | None = None
    offline: bool = False


@dataclass(frozen=True)
class JudgeOptions:
    """The judge: an OpenAI-compatible endpoint.

    Attributes:
        base_url: such as "https://api.openai.com/v1".
        api_key: None if the endpoint needs no key.
        model: replaces the model that the benchmark specifies.
        concurrency: number of concurrent requests.
        retries: attempts after a failure, with growing pauses.
        timeout_s: limit for one request.
        prices: US dollars per million prompt tokens and per million completion tokens, to estimate the cost.
    """

    base_url: str
    api_key: str | None = None
    model: str | None = None
    concurrency: int = 8
    retries: int = 5
    timeout_s: float = 120.0
    prices: tuple[float, float] | None = None


@dataclass(frozen=True)
class RunOptions:
    """Options of running tasks.

    Attributes:
        output_dir: results are written to `output_dir/<model>/<task>`.
        data: where to look for datasets.
        limit: number of rows per task; None: all.
        batch_size: prompts answered together. It changes the speed, not the answers.
        workers: number of worker processes, one per GPU if there are GPUs.
        phase: "all"; "predict" stops before scoring; "score" scores stored answers, without the model and the data.
        force: start over if the folder holds results of another model, task version, data or settings.
        judge: None if there is no judge: judged tasks then keep their answers and wait for a judge.
        ray: run the workers as Ray tasks.
    """

    output_dir: Path
    data: DataOptions
    limit: int | None = None
    batch_size: int = 16
    workers: int = 1
    phase: Literal["all", "predict", "score"] = "all"
    force: bool = False
    judge: JudgeOptions | None = None
    ray: bool = False


@dataclass(frozen=True)
class Rank:
    """The number of this process among several, as in `torchrun`; `local_rank` counts per machine."""

    rank: int
    world_size: int
    local_rank: int


@dataclass(frozen=True)
class Planned:
    """A task to run, with the number of video frames.

    `folder` is its results folder below the model's: the task's name, with "-<frames>" if the user asked for several.
    """

    task: Task
    folder: str
    num_video_frames: int | None = None


@dataclass(frozen=True)
class TaskOutcome:
    """The outcome of a planned task: a result, or the message of the error that stopped it.

    `waiting` says what a task without a result is waiting for ("a judge", "scoring"), if that is not an error.
    `was_complete`: the result is of an earlier run, and nothing was run again.
    """

    planned: Planned
    folder: Path
    result: TaskResult | None = None
    error: str | None = None
    waiting: str | None = None
    was_complete: bool = False
