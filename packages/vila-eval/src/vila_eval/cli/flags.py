"""The flags of an evaluation, grouped as on the help page, each group with its conversion to the library's options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vila_core.cli.options import Device, Dtype, LoraPath, Offline, Revision, json_option
from vila_core.errors import ConfigError
from vila_eval.cli.arguments import cache_folder, read_frames, read_judge, split_names

if TYPE_CHECKING:
    from vila_core.plugins.hookspecs import Named
    from vila_core.plugins.registry import Registry
    from vila_eval.data.sources import DataOptions
    from vila_eval.options import JudgeOptions, ModelOptions, Planned, RunOptions

_model = partial(typer.Option, rich_help_panel="Model")
_tasks = partial(typer.Option, rich_help_panel="Tasks")
_data = partial(typer.Option, rich_help_panel="Data")
_run = partial(typer.Option, rich_help_panel="Run")
_judge = partial(typer.Option, rich_help_panel="Judge")
_output = partial(typer.Option, rich_help_panel="Output")

Names = list[str] | None


@dataclass(frozen=True)
class ModelFlags:
    """Which model answers, and how it is loaded."""

    model_path: Annotated[
        str | None,
        _model("--model-path", "-m", metavar="MODEL", help="Folder or hub id. Default: the embedded demo model."),
    ] = None
    model_name: Annotated[
        str | None,
        _model(
            "--model-name", metavar="NAME", help="Name of the results folder (default: last part of the model path)."
        ),
    ] = None
    lora_path: LoraPath = None
    conv_mode: Annotated[
        str, _model("--conv-mode", "-c", metavar="NAME", help="Chat template; auto uses the checkpoint's own.")
    ] = "auto"
    device: Device = "auto"
    dtype: Dtype = "auto"
    revision: Revision = None
    offline: Offline = False
    max_tiles: Annotated[
        int | None,
        _model("--max-tiles", "-mt", metavar="N", min=1, help="Most tiles per image. Default: the model's own."),
    ] = None

    def options(self) -> ModelOptions:
        from vila_eval.options import ModelOptions

        return ModelOptions(
            path=self.model_path,
            name=self.model_name,
            lora=self.lora_path,
            chat_template=None if self.conv_mode == "auto" else self.conv_mode,
            device=self.device,
            dtype=self.dtype,
            max_tiles=self.max_tiles,
            revision=self.revision,
            offline=self.offline,
        )


@dataclass(frozen=True)
class TaskFlags:
    """Which tasks run, and on how much data."""

    tasks: Annotated[
        Names, _tasks("--tasks", "-t", metavar="TASK…", help="Names, patterns ('videomme-*') or tags ('vila/blocks').")
    ] = None
    tags_include: Annotated[
        Names, _tasks("--tags-include", "-ti", metavar="TAG…", help="Run tasks with any of these tags.")
    ] = None
    tags_exclude: Annotated[
        Names, _tasks("--tags-exclude", "-te", metavar="TAG…", help="Skip tasks with any of these tags.")
    ] = None
    num_video_frames: Annotated[
        Names,
        _tasks(
            "--num-video-frames",
            "-nf",
            metavar="N/N…",
            help="Frames per video: video tasks run once per number; tasks with a fixed number run if it is listed.",
        ),
    ] = None
    limit: Annotated[int | None, _tasks(metavar="N", min=1, help="Only the first N rows of each task.")] = None

    def plan(self, registered: Registry[Named]) -> list[Planned]:
        """Select the tasks to run from the registered ones. Raises `ConfigError`."""
        from vila_eval.running.selection import select

        return select(
            registered,
            split_names(self.tasks or ()),
            split_names(self.tags_include or ()),
            split_names(self.tags_exclude or ()),
            read_frames(self.num_video_frames or ()),
        )


@dataclass(frozen=True)
class DataFlags:
    """Where datasets come from."""

    data: Annotated[
        Path | None, _data(metavar="DIR", help="Copies of hub datasets, as DIR/owner/name; downloads nothing.")
    ] = None
    fixtures: Annotated[
        bool, _data("--fixtures", metavar="", help="Use small made-up datasets instead of the real ones.")
    ] = False

    def options(self, *, offline: bool) -> DataOptions:
        from vila_eval.data.sources import DataOptions

        if self.fixtures and self.data is not None:
            raise ConfigError("Got both --fixtures and --data: choose made-up rows or real data.")
        mirror = self.data.expanduser() if self.data else None
        return DataOptions(cache_folder(), mirror=mirror, fixtures=self.fixtures, offline=offline)


@dataclass(frozen=True)
class RunFlags:
    """How the tasks run."""

    output_dir: Annotated[Path, _run("--output-dir", "-o", metavar="DIR", help="Folder for the results.")] = Path(
        "results"
    )
    batch_size: Annotated[int, _run("--batch-size", "-b", metavar="N", min=1, help="Prompts answered together.")] = 16
    workers: Annotated[
        int,
        _run(
            "--workers",
            "--nproc-per-node",
            "-n",
            metavar="N",
            min=1,
            help="Processes that answer, one per GPU if there are GPUs.",
        ),
    ] = 1
    ray: Annotated[bool, _run("--ray", metavar="", help="Run the workers on a Ray cluster.")] = False
    predict_only: Annotated[bool, _run("--predict-only", metavar="", help="Only answer; score later.")] = False
    score_only: Annotated[
        bool, _run("--score-only", metavar="", help="Only score stored answers; needs no model and no data.")
    ] = False
    force: Annotated[
        bool, _run("--force", metavar="", help="Start over if the folder holds results of another model or version.")
    ] = False
    dry_run: Annotated[
        bool, _run("--dry-run", metavar="", help="Show the first prompts and their pictures; load no model.")
    ] = False

    def options(self, limit: int | None, data: DataOptions, judge: JudgeOptions | None) -> RunOptions:
        from vila_eval.options import RunOptions

        if self.predict_only and self.score_only:
            raise ConfigError("Got both --predict-only and --score-only. Leave out both to answer and score.")
        return RunOptions(
            output_dir=self.output_dir.expanduser(),
            data=data,
            limit=limit,
            batch_size=self.batch_size,
            workers=self.workers,
            phase="predict" if self.predict_only else "score" if self.score_only else "all",
            force=self.force,
            judge=judge,
            ray=self.ray,
        )


@dataclass(frozen=True)
class JudgeFlags:
    """The judge of judged tasks."""

    judge_url: Annotated[
        str | None,
        _judge(
            "--judge-url",
            metavar="URL",
            help="OpenAI-compatible endpoint for judged tasks. Set its key in VILA_JUDGE_API_KEY or OPENAI_API_KEY.",
        ),
    ] = None
    judge_model: Annotated[
        str | None, _judge("--judge-model", metavar="NAME", help="Judge to use instead of each benchmark's own.")
    ] = None
    judge_concurrency: Annotated[
        int, _judge("--judge-concurrency", metavar="N", min=1, help="Concurrent requests.")
    ] = 8
    judge_price: Annotated[
        str | None,
        _judge("--judge-price", metavar="IN/OUT", help="US dollars per million tokens, for the cost estimate."),
    ] = None

    def options(self) -> JudgeOptions | None:
        return read_judge(self.judge_url, self.judge_model, self.judge_concurrency, self.judge_price)


class Tracker(StrEnum):
    """Experiment trackers that numbers can be sent to."""

    tensorboard = "tensorboard"
    wandb = "wandb"


@dataclass(frozen=True)
class OutputFlags:
    """Where the numbers go, besides the results folder."""

    report_to: Annotated[Tracker | None, _output("--report-to", "-r", help="Also send the numbers there.")] = None
    as_json: Annotated[bool, json_option("Print the outcome of each task as JSON.")] = False
