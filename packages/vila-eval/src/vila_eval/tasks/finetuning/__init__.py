"""Benchmarks that VILA runs on fine-tuned models.

Three of VILA's tasks are missing because their questions are not available: `scicap` (the public SciCap is archives
without a table, its test captions are withheld, and several editions exist), `nuscenes` (six cameras, and questions
converted from data that only registered nuScenes users may read) and `aitz` (actions converted to a private format,
from archives on Google Drive).
"""

from vila_eval.tasks.finetuning.medical import PATHVQA, PMCVQA
from vila_eval.tasks.finetuning.refcoco import REFCOCO_TASKS
from vila_eval.tasks.finetuning.tallyqa import TALLYQA
from vila_eval.tasks.finetuning.widgetcap import WIDGETCAP

FINETUNING_TASKS = (*REFCOCO_TASKS, TALLYQA, PATHVQA, PMCVQA, WIDGETCAP)
