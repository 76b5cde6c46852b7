"""A callback in one file: NVIDIA's one-logger, or any other telemetry of a company, told of the milestones of a run.

    vila-train sft … --plugin examples/one_logger.py --set logging.callbacks=[tensorboard,one_logger]

It replaces the option `use_one_logger` of VILA's scripts. `one_logger_utils` is NVIDIA's own package; without it, the
same events go to OUT/one_logger.jsonl. In a distribution, the entry point in the group `vila` names this module, and
`--plugin` is not needed.
"""

import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from vila_core import hookimpl
from vila_core.strict_json import to_strict_json
from vila_train.callbacks import CallbackFactory, NoCallback

SCHEMA = "1.0.0"
EVERY = 10
"""Steps between records of the speed."""


class OneLogger(NoCallback):
    """Sends the start, the speed, each checkpoint and the end of a run, under the names that one-logger uses."""

    def __init__(self):
        self._send = None
        self._first_step_done = False
        self._samples = self._tokens = 0
        self._flops = self._seconds = 0.0

    def on_start(self, start):
        self._send = open_sink(start.folder)
        self._send(
            app_start_time=now(),
            app_tag=start.config.name,
            app_run_type="training",
            summary_data_schema_version=SCHEMA,
            world_size=start.world_size,
            global_batch_size=start.config.data.samples_per_step,
            micro_sequence_length=start.config.data.max_length,
            train_iterations_start=start.first_step,
            train_iterations_target=start.total_steps,
        )

    def on_step(self, record):
        self._samples, self._tokens = self._samples + record.samples, self._tokens + record.tokens
        self._flops, self._seconds = self._flops + record.model_flops, self._seconds + record.seconds
        if not self._first_step_done or record.step % EVERY == 0:
            self._first_step_done = True
            self._send(
                train_iterations_end=record.step,
                train_samples_end=self._samples,
                train_tokens_end=self._tokens,
                train_iterations_time_msecs_avg=1000 * record.seconds,
                train_throughput_per_gpu=self._flops / max(self._seconds, 1e-9),
                train_loss=record.loss,
            )

    def on_evaluation(self, step, scores):
        self._send(validation_iterations_end=step, **{f"validation_{name}": score for name, score in scores.items()})

    def on_checkpoint(self, step, folder):
        self._send(save_checkpoint_finish_time=now(), save_checkpoint_iteration=step)

    def on_end(self, step, reason):
        if self._send is not None:
            self._send(app_finish_time=now(), app_finish_reason=reason, train_iterations_end=step)


def open_sink(folder: Path):
    """Return a function that takes the metrics of one event by name."""
    if find_spec("one_logger_utils") is not None:
        client = import_module("one_logger_utils").OneLoggerUtils({"project": "vila-train", "name": folder.name})
        return lambda **metrics: client.log_metrics(metrics)

    def append(**metrics):
        with (folder / "one_logger.jsonl").open("a", encoding="utf-8") as file:
            file.write(to_strict_json(metrics) + "\n")

    return append


def now() -> int:
    """Milliseconds since 1970."""
    return round(1000 * time.time())


@hookimpl
def vila_callbacks():
    """Register the callback."""
    return [CallbackFactory("one_logger", "milestones of a run, as one-logger names them", OneLogger)]
