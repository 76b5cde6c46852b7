"""The benchmarks that come with vila-eval, one package per family."""

from vila_eval.tasks.drawing import DRAWING_TASKS
from vila_eval.tasks.drawn_world import DRAWN_WORLD
from vila_eval.tasks.finetuning import FINETUNING_TASKS
from vila_eval.tasks.images import IMAGE_TASKS
from vila_eval.tasks.judged import JUDGED_TASKS
from vila_eval.tasks.knowledge import KNOWLEDGE_TASKS
from vila_eval.tasks.reconstruction import RECONSTRUCTION_TASKS
from vila_eval.tasks.video import VIDEO_TASKS

ALL = (
    *DRAWN_WORLD,
    *IMAGE_TASKS,
    *KNOWLEDGE_TASKS,
    *VIDEO_TASKS,
    *JUDGED_TASKS,
    *FINETUNING_TASKS,
    *RECONSTRUCTION_TASKS,
    *DRAWING_TASKS,
)
"""The tasks that the plugin registers."""
