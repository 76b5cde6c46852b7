"""Benchmarks that the reference runs on fine-tuned models."""

from vila_eval.task import Task

FINETUNING_TASKS: tuple[Task, ...] = ()
