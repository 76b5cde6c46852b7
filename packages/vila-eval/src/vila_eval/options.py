"""What a user decides about a run, as the command line or a script gives it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vila_eval.data.sources import DataOptions
from vila_eval.records.schema import TaskResult
from vila_eval.task import Task


@dataclass(frozen=True)
class ModelOptions:
    """Which model answers, and how it is loaded; see `vila_core.load`.

    Attributes:
        path: folder or hub id; None is the embedded model.
        name: of the results folder; None: the last part of the path, or of the adapter's.
        max_tiles: most tiles of an image; None: the model's own.
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
        api_key: None where the endpoint needs none.
        model: instead of the one that each benchmark pins.
        concurrency: requests at a time.
        retries: further attempts after a failure, with growing pauses.
        timeout_s: of one request.
        prices: US dollars a million prompt tokens and a million completion tokens, for the estimate of the cost.
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
    """How tasks are run.

    Attributes:
        output_dir: results are written to `output_dir/<model>/<task>`.
        data: where datasets are looked for.
        limit: rows of each task; None: all.
        batch_size: prompts answered together. It changes the speed, not the answers.
        workers: processes that answer, one a GPU where there are GPUs.
        phase: "all"; "predict" stops before scoring; "score" scores stored answers, without the model and the data.
        force: start anew where the folder holds results of another model, task version, data or settings.
        judge: None where there is none: judged tasks keep their answers and say that they wait for a judge.
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
    """Which of several processes this is, as `torchrun` numbers them: `rank` of `world_size`, `local_rank` on its machine."""

    rank: int
    world_size: int
    local_rank: int


@dataclass(frozen=True)
class Planned:
    """A task to run, with the frames of its videos decided.

    `folder` is the results folder below the model's: the task's name, with "-<frames>" where the user asked for several.
    """

    task: Task
    folder: str
    num_video_frames: int | None = None


@dataclass(frozen=True)
class TaskOutcome:
    """What became of a planned task: a result, or the message of the `VilaError` that stopped it. One does not stop the others.

    `waiting` says what a task without result waits for ("a judge", "scoring"), where that is no error.
    """

    planned: Planned
    folder: Path
    result: TaskResult | None = None
    error: str | None = None
    waiting: str | None = None
