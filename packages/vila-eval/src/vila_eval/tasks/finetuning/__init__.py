"""Benchmarks that the reference runs on fine-tuned models."""

from vila_eval.tasks.finetuning.medical import PATHVQA, PMCVQA
from vila_eval.tasks.finetuning.refcoco import REFCOCO_TASKS
from vila_eval.tasks.finetuning.tallyqa import TALLYQA

FINETUNING_TASKS = (*REFCOCO_TASKS, TALLYQA, PATHVQA, PMCVQA)
