"""Benchmarks that the reference runs on fine-tuned models.

Three of its entries are not here, since their questions cannot be had: `scicap` (the public SciCap is archives without a table, its
test captions are withheld, and there are several editions), `nuscenes` (six cameras and questions converted from data that only
registered users of nuScenes may read) and `aitz` (actions converted to a format of its own, from archives on Google Drive).
"""

from vila_eval.tasks.finetuning.medical import PATHVQA, PMCVQA
from vila_eval.tasks.finetuning.refcoco import REFCOCO_TASKS
from vila_eval.tasks.finetuning.tallyqa import TALLYQA
from vila_eval.tasks.finetuning.widgetcap import WIDGETCAP

FINETUNING_TASKS = (*REFCOCO_TASKS, TALLYQA, PATHVQA, PMCVQA, WIDGETCAP)
